"""Hostile and damaged input, foreign folders: one line that names the option, the exit code of the input's fault."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.core.weights import fit, read_pickle
from flashdmd_cli.data.seen import scratch
from flashdmd_cli.runs.errors import UsageError, WriteError
from flashdmd_cli.runs.files import saving_weights
from flashdmd_cli.runs.folder import claim
from flashdmd_cli.runs.lock import release
from flashdmd_cli.runs.tracking import Tracker
from flashdmd_cli.runs.yaml_text import excerpt, parse_yaml
from flashdmd_cli.workflows.demo.run import remember

from .fuzzing import RESULTS, SAMPLE
from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

DEEP = "[" * 2_000


class Planted:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "0x" + "f" * 5000, DEEP, "2020-99-99", "!!int x", '!!int ""', "!!timestamp x", "!!bool x", "&a [*b]"],
    ids=["digits", "hex", "deep", "date", "int", "empty int", "timestamp", "bool", "anchor"],
)
def test_text_that_is_no_yaml_is_wrong_usage(text, tmp_path, monkeypatch):
    """PyYAML raises nearly any exception for such texts: they were reported as faults of flashdmd, exit code 1."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^[^\n]+$"):
        parse_yaml(text)
    fails(run("distill", "--dry-run", "--set", f"train.seed={text}"), 2, "--set: not YAML: ")
    Path("r.yaml").write_text(f"train: {{seed: {text}}}\n")
    fails(run("recipes", "show", "r.yaml"), 2, "--recipe: r.yaml: not YAML: ")
    if text != "9" * 5000:
        return
    Path("s.yaml").write_text(f"name: {text}\n")
    fails(run("eval", "--suite", "s.yaml"), 2, "--suite s.yaml: not YAML: ")
    fails(run("sample", "--prompt", "x", "--model", "s.yaml"), 2, "--model s.yaml: not YAML: ")


def test_values_of_any_size_are_named_in_one_short_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    laughs = "&a [x, x, x, x, x, x, x, x]"
    for level in "bcdefghi":
        laughs = f"&{level} [{laughs}{f', *{chr(ord(level) - 1)}' * 7}]"
    for value in (laughs, "x" * 10_000, "{a: 1}", "1" * 19):
        result = run("distill", "--dry-run", "--set", f"train.batch={value}")
        assert result.exit_code in (0, 2) and len(result.stderr) < 400, result.stderr[:1000]
    assert excerpt(int("1" * 4000) ** 2) == "an integer with too many digits" and excerpt(3) == "3"
    with pytest.raises(ValueError, match="nested"):
        parse_json(DEEP)
    Path("run").mkdir()
    Path("run/manifest.json").write_text(DEEP)
    fails(run("inspect", "run"), 3, "run/manifest.json: not a manifest: ")


@pytest.mark.parametrize("kind", ["planted", "object", "text", "list", "names", "empty", "integers"])
def test_a_file_that_is_no_sam_is_one_line_without_torchs_advice(kind, world):
    """torch advises to load such files with `weights_only=False`, which runs the code in them."""
    path = world / "sam.pth"
    if kind in ("text", "empty"):
        path.write_text("hello\n" if kind == "text" else "")
    elif kind in ("planted", "object"):
        path.write_bytes(pickle.dumps({"image_encoder.pos_embed": Planted() if kind == "planted" else Path("x")}))
    else:
        torch.save({"list": [torch.ones(1)], "names": {"image_encoder.pos_embed": "x"},
                    "integers": {"image_encoder.pos_embed": torch.ones(1, 2, 2, 768)}}[kind], path)  # fmt: skip
    run("prepare-data", "shapes", "--num", 4, "--quiet")
    result = run("distill", "--recipe", "shapes-4step", "--set", f"gan.sam={path}", "--out", "o", "--quiet")
    fails(result, 3, f"gan.sam: {path}")
    assert "weights_only" not in result.stderr and not Path("executed").exists()


def test_pickles_are_read_in_one_place_and_integers_are_no_weights(tmp_path):
    package = Path(read_pickle.__code__.co_filename).parents[1]
    found = {path.name for path in package.rglob("*.py") if "torch.load(" in path.read_text()}
    assert found == {"weights.py", "worker.py"}  # the worker's environment reads what was checked here
    (tmp_path / "x").write_bytes(b"\x80\x04garbage")
    with pytest.raises(Unfit, match="no file of weights"):
        read_pickle(tmp_path / "x")
    net = torch.nn.Linear(2, 2)
    with pytest.raises(Unfit, match="weight is torch.int8"):
        fit(net, {"weight": torch.ones(2, 2, dtype=torch.int8), "bias": torch.ones(2)})


@pytest.mark.parametrize("planted", [".work", ".work/plan.jsonl", ".lock", "metrics.jsonl", "pipe"])
def test_no_command_writes_through_what_was_planted_in_its_folder(planted, tmp_path, monkeypatch):
    """The folder is marked, so that a command takes it for its own; what lies outside of it has to stay as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside").mkdir()
    (tmp_path / "precious").write_text("precious")
    out = tmp_path / "out"
    (out / planted).parent.mkdir(parents=True)
    (out / ".flashdmd").write_text("data\n")
    if planted == "pipe":
        os.mkfifo(out / planted)
    else:
        (out / planted).symlink_to(tmp_path / ("outside" if planted == ".work" else "precious"))
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    result = run("prepare-data", "prompts.txt", "--out", out, "--quiet")
    assert result.exit_code == (3 if planted == ".lock" else 2), result.output
    assert result.stderr.startswith("--out") and len(result.stderr.splitlines()) == 1
    with pytest.raises(UsageError if planted != ".lock" else Exception, match="--out"):
        claim(out, "data")
    release()
    assert list((tmp_path / "outside").iterdir()) == [] and (tmp_path / "precious").read_text() == "precious"
    again = run("prepare-data", "prompts.txt", "--out", out, "--quiet", "--yes")  # removes links, not what they name
    assert again.exit_code == (3 if planted == ".lock" else 0), again.output
    assert list((tmp_path / "outside").iterdir()) == [] and (tmp_path / "precious").read_text() == "precious"


def test_a_folder_that_is_a_link_itself_is_the_users_choice(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    (tmp_path / "p.txt").write_text("a\nb\n")
    assert run("prepare-data", tmp_path / "p.txt", "--out", tmp_path / "out", "--quiet").exit_code == 0
    assert (tmp_path / "disk" / "manifest.json").is_file()


def test_an_input_that_may_not_be_read_is_the_inputs_fault(tmp_path):
    long = tmp_path / ("x" * 300 + ".yaml")
    fails(run("recipes", "show", long), 3, "too long")
    save_file({}, tmp_path / "x.safetensors")
    assert run("inspect", tmp_path / ("x" * 300)).exit_code == 3


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes writes to files fail as on a full disk, if their name contains a text; "" allows all.

    The system names no file when a write fails, only when a file cannot be opened.
    """
    wanted: list[str] = []

    def fails_for(name: object) -> bool:
        return any(text in str(name) for text in wanted)

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if fails_for(self.name):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+") or not fails_for(file):
            return real(file, mode, buffering, *rest, **options)
        raw = Full(os.fspath(file), mode.replace("b", "").replace("t", ""))
        buffer = io.BufferedWriter(raw)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding=options.get("encoding"))

    real = io.open
    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(builtins, "open", opened)
    return lambda text: wanted.__setitem__(slice(None), [text] if text else [])


def test_tensorboard_on_a_full_disk_is_one_error_that_names_its_file(tmp_path, full, capsys):
    """The thread of TensorBoard's own writer printed a traceback, and the error that closing it raised had no name."""
    full("tfevents")
    with pytest.raises(WriteError, match="cannot write .*/tensorboard/events.out.tfevents.*: the disk is full"):
        with Tracker(tmp_path) as tracker:
            tracker.log(0, {"loss": 1.0})
    full("metrics.jsonl")
    with pytest.raises(WriteError, match=r"cannot write .*/metrics.jsonl: the disk is full"):
        with Tracker(tmp_path) as tracker:
            tracker.log(0, {"loss": 1.0})
    full("")
    with Tracker(tmp_path) as tracker:
        for step in range(4):
            tracker.log(step, {"loss": step / 2}, {"seconds": 1.0})
    with Tracker(tmp_path, start=2) as tracker:
        tracker.log(2, {"loss": 5.0})
    assert capsys.readouterr() == ("", "")
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in board.Scalars("loss")] == [(0, 0.0), (1, 0.5), (2, 5.0)]
    assert [each.step for each in board.Scalars("seconds")] == [0, 1]


def test_a_full_disk_leaves_no_parts_of_files_and_names_the_one(world, full):
    words = ["sample", "--from", "shapes-sdxl", "--prompt", "a red circle", "--steps", 1, "--out", "s", "--quiet"]
    for name in ("grid.png", "00000.png", "prompts.json", "manifest.json"):
        full(name)
        fails(run(*words), 3, "--out: cannot write ", name, "the disk is full")
        assert not [path for path in Path("s").rglob("*") if path.name.endswith((".partial", ".tmp"))]
        full("")
        assert run(*words).exit_code == 0 and run("inspect", "s", "--quiet").exit_code == 0
    Path("d").mkdir()
    Path("d/.seconds").write_text("")  # as a full disk left it
    assert remember(Path("d"), {"iterations": 1}) == 0.0


def test_a_full_disk_during_a_preparation_names_the_file(tmp_path, full, monkeypatch):
    """Also where SQLite or webdataset write, whose errors have no file name."""
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("a\na\nb\n")
    words = ["prepare-data", "p.txt", "--out", "o", "--quiet"]
    for name in ("pictures-000000.tar", "records-000000.jsonl", "plan.jsonl"):
        full(name)
        fails(run(*words), 3, "--out: cannot write ", name, "the disk is full")
    full("shapes-000000.tar")
    fails(run("prepare-data", "shapes", "--num", 2, "--out", "s", "--quiet"), 3, "shapes-000000.tar: the disk is full")
    full("")
    assert run(*words).exit_code == 0
    with (
        pytest.raises(OSError, match="database or disk is full.*x.sqlite"),
        scratch(tmp_path / "x.sqlite") as connection,
    ):
        connection.execute("PRAGMA max_page_count=2")
        connection.execute("CREATE TABLE t (value BLOB)")
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")


def test_a_full_disk_while_weights_are_written_names_the_newest_file(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    for error in (SafetensorError("Error: I/O error (os error 28)"), OSError(errno.ENOSPC, "No space left")):
        with pytest.raises(WriteError, match="cannot write .*/unet/model.safetensors: the disk is full"):
            with saving_weights(tmp_path):
                (tmp_path / "unet").mkdir(exist_ok=True)
                (tmp_path / "unet" / "model.safetensors").write_bytes(b"part")
                raise error


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"suite": None}, "suite: "), ({"metrics": {"clip": []}}, "metrics.clip: "), ({"metrics": [1]}, "metrics: "),
        ({"metrics": {"clip": {"value": "x", "n": 1, "direction": "higher"}}}, "metrics.clip.value: "),
        ({"seconds": {"generate": 1}}, "seconds.score: "), ({"warnings": {}}, "warnings: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_results_of_anybody_are_checked_before_they_are_compared(change, text, tmp_path, monkeypatch):
    """Missing and wrong values were a KeyError, TypeError or AttributeError, exit code 1."""
    monkeypatch.chdir(tmp_path)
    for name, document in (("a", RESULTS), ("b", RESULTS | change)):
        Path(name).mkdir()
        Path(name, "results.json").write_text(json.dumps(document))
        Path(name, "samples.jsonl").write_text(json.dumps(SAMPLE) + '\n{"id": 1}\nnull\n')
    fails(run("eval", "compare", "a", "b"), 3, f"b/results.json: is no result of flashdmd eval: {text}")
    Path("b/results.json").write_text(json.dumps(RESULTS | {"name": "two"}))
    assert run("eval", "compare", "a", "b", "--out", "c").exit_code == 0


def test_a_benchmark_of_one_prompt_has_no_interval_and_is_read(tmp_path, monkeypatch):
    """The interval is unbounded, which the command could not print: exit code 1."""
    monkeypatch.chdir(tmp_path)
    Path("r.json").write_text('[{"question_id": 0, "answer": 0.25}]')
    result = run("eval", "read", "t2i-compbench", "r.json", "--out", "o")
    assert (result.exit_code, result.stdout) == (0, "t2i-compbench: 0.2500, 1 picture\n")
    Path("r.json").write_text('[{"question_id": 0, "answer": NaN}]')
    fails(run("eval", "read", "t2i-compbench", "r.json", "--out", "o"), 3, "a score in it is no finite number")


@pytest.mark.parametrize("scores", [[2.0**70], [1e308, -1e308], [5e-324], [0.0, 1e-12]], ids=str)
def test_columns_with_any_number_are_drawn(scores, tmp_path, monkeypatch):
    """A single number of 70 bits left no room for a histogram: ZeroDivisionError at the end of the preparation."""
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text("".join(json.dumps({"prompt": f"a {i}", "s": s}) + "\n" for i, s in enumerate(scores)))
    assert run("prepare-data", "p.jsonl", "--out", "o", "--quiet", "--filter", "s>=-1e308").exit_code == 0
    assert Path("o/report.html").read_text().count("<svg") == 2
