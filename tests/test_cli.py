"""The command line as people and scripts use it: outputs, exit codes, one line for each mistake, the whole demo."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from typer.main import get_command
from typer.testing import CliRunner, Result

from flashdmd_cli.cli import output as output_module
from flashdmd_cli.cli.app import app
from flashdmd_cli.cli.output import Output, Progress, error_line, exit_code
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.runs import errors
from flashdmd_cli.runs.manifest import Collection, Manifest, write_manifest
from flashdmd_cli.runs.recipe import list_recipes
from flashdmd_cli.shapes import assets
from flashdmd_cli.shapes.inspector import Inspector

from .test_distill import sam_folder  # noqa: F401

COMMANDS = [
    [], ["demo"], ["prepare-data"], ["distill"], ["align"], ["sample"], ["export"], ["inspect"], ["plan"],
    ["doctor"], ["bench"],
    ["eval"], ["eval", "compare"], ["eval", "read"],
    ["recipes"], ["recipes", "list"], ["recipes", "show"], ["recipes", "copy"], ["reward"], ["reward", "train"],
    ["reward", "score"], ["shapes"], ["shapes", "build"],
]  # fmt: skip
SURFACE = [
    "align: --data --device --dry-run --from --iterations --nproc --out --recipe --reward --rl-ratio --seed --set"
    " --stop-on-collapse",
    "bench: --against --batch --cycles --device --recipe --resolution --set --size",
    "demo: --device --family --iterations --out --seed",
    "distill: --data --device --dry-run --iterations --nproc --out --recipe --seed --set --steps --teacher"
    " --teacher-config --ttur --vae",
    "doctor:",
    "eval: --backend --batch --device --fail-above --fail-below --from --generate-only --guidance --images --layout"
    " --limit --metrics --model --nproc --out --prompts --references --sampler --seed --seeds --steps --suite"
    " --teacher-config --vae --weights-dir",
    "eval compare: --format --metrics --out --paper results",
    "eval read: --out file layout",
    "export: --dry-run --dtype --format --from --out --push --rank --yes",
    "inspect: folder",
    "plan: --gpu --nproc --price --recipe --resolution --set",
    "prepare-data: --cache --caption --caption-column --captions-from-names --duplicates --encode --filter --format"
    " --image-column --nproc --num --out --resolution --seed --shard-count --shard-index --shard-size --suite"
    " --teacher --teacher-config --vae --yes source",
    "recipes copy: --yes name to",
    "recipes list:",
    "recipes show: --set name",
    "reward score: --at --device --image --pairs --prompt --reward --seed --teacher",
    "reward train: --device --iterations --nproc --out --pairs --recipe --seed --set --teacher",
    "sample: --compare --compile --device --from --list-models --model --num --out --port --prompt --prompts --sampler"
    " --seed --serve --size --steps --teacher-config --vae",
    "shapes build: --device --minutes --out --seed --steps --work part",
]
PROBE = """
import sys
from flashdmd_cli.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    heavy = {"torch", "diffusers", "transformers", "matplotlib", "PIL", "numpy"} & set(sys.modules)
    sys.exit(end.code or (9 if heavy else 0))
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def fails(result: Result, code: int, *said: str) -> None:
    """Exit code, nothing on stdout, and one line on stderr that says all of `said`."""
    lines = result.stderr.strip().splitlines()
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert len(lines) == 1, lines
    for text in said:
        assert text in lines[0]


@pytest.fixture(scope="session")
def shipped(
    tiny_folder: Path,
    tiny_sd3_folder: Path,
    sam_folder: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder of assets with random weights, of the size of the embedded world."""
    root = tmp_path_factory.mktemp("assets")
    for source, name, denoiser in (
        (tiny_folder, "shapes-sdxl", "unet"),
        (tiny_sd3_folder, "shapes-sd3", "transformer"),
    ):
        path = shutil.copytree(source, root / name) / denoiser / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 16}))
    shutil.copytree(sam_folder, root / "shapes-sam")
    torch.manual_seed(0)
    (root / "inspector").mkdir()
    save_file(Inspector().state_dict(), root / "inspector" / "inspector.safetensors")
    return root


@pytest.fixture
def world(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the assets in place."""
    monkeypatch.setattr(assets, "ASSETS", shipped)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "-".join(words) or "root")
def test_help_imports_nothing_heavy(words):
    done = subprocess.run([sys.executable, "-c", PROBE, *words, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ") and "\x1b" not in done.stdout


def test_surface():
    """Options are an interface: whoever changes one changes this list, and says so in the CHANGELOG."""

    def walk(command: Any, name: str) -> list[str]:
        if hasattr(command, "commands"):
            own = [options_of(command, name)] if command.invoke_without_command else []
            return own + [
                line for key in sorted(command.commands) for line in walk(command.commands[key], f"{name} {key}")
            ]
        return [options_of(command, name)]

    def options_of(command: Any, name: str) -> str:
        return f"{name}: {' '.join(sorted(max(p.opts, key=len) for p in command.params))}".strip()

    shared = ("--debug", "--json", "--quiet")
    lines = walk(get_command(app), "")
    assert all(option in line for line in lines for option in shared)
    short = [" ".join(word for word in line.split() if word not in shared) for line in lines]
    assert short == SURFACE


def test_dry_run_prints_recipe_and_grid_offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("distill", "--teacher", "sdxl", "--steps", 4, "--ttur", 1, "--dry-run")
    assert result.exit_code == 0
    assert "999 749 499 249" in result.stdout
    recipe = yaml.safe_load(result.stdout)
    assert (recipe["teacher"], recipe["grid"]["steps"], recipe["fake"]["ttur"]) == ("sdxl", 4, 1)
    assert list(tmp_path.iterdir()) == []
    document = json.loads(run("distill", "--teacher", "sdxl", "--dry-run", "--json").stdout)
    assert document["grid"] == [999, 749, 499, 249]


def test_what_a_dry_run_prints_is_a_recipe_again(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(run("distill", "--recipe", "shapes-4step", "--set", "gan.weight=0.7", "--dry-run").stdout)
    assert json.loads(run("recipes", "show", path, "--json").stdout)["gan"]["weight"] == 0.7


@pytest.mark.parametrize("name", [name for name in list_recipes() if "/" not in name])
def test_every_recipe_dry_runs(name):
    assert run("distill", "--recipe", name, "--dry-run").exit_code == 0


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_shown(name):
    assert yaml.safe_load(run("recipes", "show", name).stdout)["name"] == name.replace("/", "-")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["distill", "--steps", 0, "--dry-run"], 2, "grid.steps"),
        (["distill", "--ttur", 0, "--dry-run"], 2, "fake.ttur"),
        (["distill", "--set", "gan.wieght=1", "--dry-run"], 2, "gan.weight"),
        (["distill", "--recipe", "sdxl-5step", "--dry-run"], 2, "--recipe"),
        (["distill", "--teacher", "nowhere/at/all"], 3, "--teacher nowhere/at/all"),
        (["distill", "--recipe", "align/shapes"], 2, "flashdmd align --from CKPT --recipe align/shapes"),
        (["align"], 3, "--from"),
        (["align", "--from", "nowhere"], 3, "--from nowhere"),
        (["prepare-data", "coco"], 2, "shapes"),
        (["prepare-data", "shapes", "--num", 0], 2, "--num"),
        (["sample", "--from", "x", "--seed", "3,x", "--prompt", "p"], 2, "--seed 3,x: x is no seed"),
        (["sample", "--from", "x", "--seed", "9-3", "--prompt", "p"], 2, "--seed 9-3"),
        (["sample", "--from", "x", "--seed", "1,2", "--num", 2, "--prompt", "p"], 2, "--num 2"),
        (["sample", "--from", "x", "--size", "64x", "--prompt", "p"], 2, "--size 64x"),
        (["sample", "--device", "tpu", "--prompt", "p", "--from", "shapes-sdxl"], 2, "--device tpu"),
        (["distill", "--device", "tpu"], 2, "model.device"),
        (["sample"], 2, "--prompt"),
        (["sample", "--prompt", "p"], 3, "--from"),
        (["sample", "--prompt", "p", "--from", "x.y"], 3, "--from"),
        (["sample", "--prompts", "none.txt"], 3, "--prompts"),
        (["eval", "--suite", "coco10k"], 3, "annotations_trainval2014.zip"),
        (["eval", "--limit", 1], 2, "--limit"),
        (["eval", "--fail-below", "beauty=1"], 2, "composition"),
        (["eval", "--fail-below", "frechet"], 2, "METRIC=NUMBER"),
        (["eval", "--fail-below", "frechet=20"], 2, "lower is better (--fail-above"),
        (["eval", "--fail-above", "composition=1"], 2, "higher is better (--fail-below"),
        (["export", "--format", "gif"], 2, "diffusers"),
        (["export"], 3, "--from"),
        (["inspect", "nowhere"], 3, "nowhere"),
        (["reward", "train", "--pairs", "none.jsonl", "--teacher", "nowhere/at/all"], 3, "--teacher"),
        (["reward", "score", "--reward", "x"], 2, "--pairs"),
        (["reward", "score", "--reward", "x", "--image", "a.png"], 2, "--prompt"),
        (["recipes", "show", "nothing"], 2, "recipes list"),
        (["recipes", "list", "--json", "--quiet"], 2, "--quiet"),
        (["shapes", "build", "cat", "--out", "x"], 2, "inspector"),
    ],
    ids=str,
)
def test_each_mistake_is_one_line(words, code, said, world):
    fails(run(*words), code, said)
    assert list(world.iterdir()) == []


def test_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("recipes", "list", "--quiet").stdout.split() == list_recipes()
    assert all(row["about"] for row in json.loads(run("recipes", "list", "--json").stdout))
    assert run("recipes", "copy", "shapes-4step").exit_code == 0
    fails(run("recipes", "copy", "shapes-4step"), 2, "--yes")
    assert run("recipes", "copy", "shapes-4step", "--yes", "--quiet").stdout.strip() == "shapes-4step.yaml"


def test_doctor(world):
    assert run("shapes", "build", "picture", "--out", "p", "--quiet").stdout == "p\n"
    shutil.copytree("p", assets.ASSETS / "known-picture", dirs_exist_ok=True)
    document = json.loads(run("doctor", "--json").stdout)
    assert document["ok"] and document["checks"]["shapes-sdxl"]["ok"] and document["checks"]["picture"]["ok"]
    assert document["checks"]["device"]["message"].endswith("in fp32: no native bf16 here")


def test_doctor_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(assets, "ASSETS", tmp_path)
    result = run("doctor", "--quiet")
    assert result.exit_code == 1
    assert result.stdout.split() == ["shapes-sdxl", "shapes-sd3", "shapes-sam", "inspector", "picture"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2), (errors.InputError("x"), 3), (Unfit("x"), 3), (errors.NumericalError("x"), 4),
        (errors.ThresholdError("x"), 5), (errors.Interrupted("x", signal_number=15), 143), (KeyboardInterrupt(), 130),
        (FileNotFoundError(errno.ENOENT, "No such file", "f"), 3), (PermissionError(errno.EACCES, "Denied", "f"), 3),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 3), (FloatingPointError("nan"), 4), (TypeError("x"), 1),
        (DataError("x"), 3), (SafetensorError("x"), 3), (UnpicklingError("x"), 3), (NotADirectoryError("x"), 3),
        (type("InputError", (Exception,), {})("of another library"), 1),  # by type, not by the name of a class
    ],
)  # fmt: skip
def test_exit_codes(error, code):
    assert exit_code(error) == code
    assert "\n" not in error_line(error)


def test_debug_shows_the_traceback(world):
    result = run("inspect", "nowhere", "--debug")
    assert result.exit_code == 3 and "Traceback" in result.stderr


def test_plain_progress_has_rate_and_eta(capsys, monkeypatch):
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr(output_module.time, "monotonic", lambda: float(next(clock)))
    with Progress(Output()) as progress:
        for done in range(4):
            progress.progress(done, 4, {"dm": 1 / (1 + done)})
    out, err = capsys.readouterr()
    assert out == "" and "2/4  10 s/it  ETA 0:20  dm 0.3333" in err


def test_json_knows_no_nan(capsys):
    Output(as_json=True).result({"a": float("nan"), "b": Path("x")}, "")
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": "x"}


def test_foreign_folders_are_left_alone(world):
    (world / "mine").mkdir()
    (world / "mine" / "thesis.txt").write_text("years of work")
    fails(run("prepare-data", "shapes", "--out", "mine", "--num", 4, "--yes"), 2, "--out mine")
    assert (world / "mine" / "thesis.txt").read_text() == "years of work"
    fails(run("prepare-data", "shapes", "--out", "mine/thesis.txt", "--num", 4), 3, "--out")


def test_prepare_data_is_kept_or_replaced(world):
    assert json.loads(run("prepare-data", "shapes", "--num", 4, "--out", "d", "--json").stdout)["num"] == 4
    before = (world / "d" / "manifest.json").stat().st_mtime_ns
    assert run("prepare-data", "shapes", "--num", 4, "--out", "d", "--quiet").stdout == "d\n"
    assert (world / "d" / "manifest.json").stat().st_mtime_ns == before
    fails(run("prepare-data", "shapes", "--num", 5, "--out", "d"), 2, "--yes")
    assert run("prepare-data", "shapes", "--num", 5, "--out", "d", "--yes").exit_code == 0


def test_text_of_foreign_manifests_cannot_control_the_terminal(tmp_path):
    evil = "\x1b]0;owned\x07\x1b[2J \x9b31m\r gone"
    folder = tmp_path / "data"
    collection = Collection(seen=1, kept=1, pictures=False, source=f"folder {evil}", listing="0" * 64, content="0" * 64)
    write_manifest(folder, Manifest(kind="data", collection=collection, warnings=[evil], license=evil))
    for options in ((), ("--json",), ("--quiet",)):
        result = run("inspect", folder, *options)
        assert result.exit_code == 0
        assert not set(result.output) & set("\x1b\x07\x9b\r"), options
    assert "\\u001b[2J" in run("inspect", folder).output
    assert json.loads(run("inspect", folder, "--json").stdout)
    broken = run("inspect", tmp_path / "no\x1b[31mwhere")
    assert broken.exit_code == 3 and "\x1b" not in broken.output


def test_mistakes_that_typer_finds_take_one_line() -> None:
    fails(run("doctor", "torch"), 2, "unexpected extra argument", "(torch)", "doctor --help)")
    fails(run("plan", "--nproc", 0), 2, "Invalid value for '--nproc'", "plan --help)")
    fails(run("eval", "compare", "a", "--formt", "csv"), 2, "--formt", "--format", "eval compare --help)")
    fails(run("inspect"), 2, "Missing argument", "inspect --help)")
    assert "List, show and copy recipes" in run("recipes").output  # a group without a command shows its help
