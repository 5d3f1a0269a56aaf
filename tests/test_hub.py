"""Weights from a hub: what is asked for, what is not, and every way in which it can go wrong, in one line."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import errno
import hashlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from flashdmd_cli.families.registry import family_at
from flashdmd_cli.families.sd3.facts import SD3
from flashdmd_cli.families.sd15.facts import SD15
from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.hub import files_below, parse_id
from flashdmd_cli.runs.hub import pipeline_files as files_of_pipeline
from flashdmd_cli.runs.manifest import read_manifest
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.workflows.inputs import sam
from flashdmd_cli.workflows.inputs.families import load_family
from flashdmd_cli.workflows.inputs.reward_models import LRM, find_reward, reward_files
from flashdmd_cli.workflows.inputs.teachers import _autoencoder, _configurations, find_teacher
from flashdmd_cli.workflows.recipes import default_recipes

from .fake_hub import FakeHub, serving
from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401
from .test_workflows import Listener

UNET, HALF = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"
ROOT = Path(sam.__file__).parents[3]
BLOATED = ("unet/diffusion_pytorch_model.bin", "unet/openvino_model.bin", "unet/flax_model.msgpack",
           "vae_1_0/config.json", "vae_decoder/model.onnx", "sd_xl_base_1.0.safetensors", "README.md")  # fmt: skip


def pipeline_files(names, half_first=False):
    return files_of_pipeline(names, SDXL.networks, SDXL.settings, half_first)


@pytest.fixture
def repo(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny pipeline as a repository, with what else repositories hold."""
    folder = shutil.copytree(tiny_folder, tmp_path / "served" / "sdxl")
    for name in BLOATED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return folder


@pytest.fixture
def hub(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that this process asks, with an empty cache."""
    constants = huggingface_hub.constants
    with serving(FakeHub({SDXL.hub_id: repo})) as served:
        for name, value in {
            "ENDPOINT": served.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ASSETS_CACHE": str(tmp_path / "assets"),
            "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False,
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        yield served


def command(
    hub: FakeHub, cache: Path, *words: object, stderr: int = subprocess.PIPE, **environment: str
) -> subprocess.Popen[str]:
    """The command line in a process of its own, which asks the fake hub."""
    values = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_PROXY": "*",
    }  # fmt: skip
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
        values.pop(name, None)
    start = [sys.executable, "-c", "from flashdmd_cli.__main__ import main; main()"]
    return subprocess.Popen([*start, *map(str, words)], stdout=subprocess.PIPE, stderr=stderr, text=True,
                            env=values | environment)  # fmt: skip


def refused(name: str, *said: str) -> str:
    """Whatever `find_teacher` says no with: one line that holds all of `said`."""
    with pytest.raises(InputError) as caught:
        find_teacher(name)
    line = f"{caught.value.message} ({caught.value.hint})"
    assert line.startswith(f"--teacher {name}: ") and "\n" not in line
    for text in said:
        assert text in line
    return line


def test_only_what_a_pipeline_needs_is_asked_for_and_once(hub: FakeHub, repo: Path) -> None:
    folder = find_teacher("sdxl")
    assert folder.name == hub.commit(SDXL.hub_id) and (folder / UNET).read_bytes() == (repo / UNET).read_bytes()
    assert not set(hub.sent()) & set(BLOATED)
    assert set(files_below(folder)) == set(hub.files(SDXL.hub_id)) - set(BLOATED)
    hub.asked.clear()
    # The same again, by another name and after the hub has moved on: what is here is used, nothing is asked.
    (repo / "README.md").write_text("a later commit")
    assert find_teacher("sdxl") == find_teacher(SDXL.hub_id) == find_teacher(f"sdxl@{folder.name}") == folder
    assert hub.asked == []
    # A file that is gone is fetched again, and only that.
    for blob in ((folder / UNET).resolve(), folder / UNET):
        blob.unlink()
    assert find_teacher("sdxl").name == hub.commit(SDXL.hub_id)
    assert set(hub.sent()) == {UNET}


def test_a_broken_transfer_goes_on_where_it_stopped(hub: FakeHub, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is written at a time
    hub.cut = {UNET}
    assert (find_teacher("sdxl") / UNET).read_bytes() == (repo / UNET).read_bytes()
    parts = [part for method, path, part in hub.asked if method == "GET" and path.endswith(UNET)]
    assert parts == ["", f"bytes={(repo / UNET).stat().st_size // 2 // 1000 * 1000}-"]


def test_half_precision_and_shards() -> None:
    small = [f"{part}/config.json" for part in ("unet", "vae", "text_encoder", "text_encoder_2")]
    small += ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
              "tokenizer_2/vocab.json"]  # fmt: skip
    rest = ["vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    halves = [HALF, "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"]
    shards = [f"text_encoder_2/model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = ["text_encoder_2/model.safetensors.index.fp16.json", "text_encoder_2/model.safetensors.index.json"]
    present = [*small, *rest, UNET, *halves, *shards, *index, "unet/diffusion_pytorch_model.non_ema.safetensors"]
    half, lacking = pipeline_files(present, half_first=True)
    assert lacking == [] and set(half) == {*small, *halves, *shards, index[0]}
    whole, lacking = pipeline_files(present)
    assert lacking == [] and set(whole) == {*small, *rest, UNET, *shards, index[0]}
    assert pipeline_files({name.replace(".fp16", ".bf16") for name in half})[1] == []
    # One shard of two is not a network; a part without its configuration neither.
    assert pipeline_files(set(present) - {shards[0]})[1] == ["text_encoder_2/"]
    assert pipeline_files(set(present) - {"vae/config.json", "model_index.json"})[1] == ["model_index.json", "vae/"]


def test_the_half_is_fetched_and_the_whole_is_used_where_it_is_here(hub: FakeHub, repo: Path) -> None:
    whole = find_teacher("sdxl")
    (repo / HALF).write_bytes(b"half of it")
    hub.asked.clear()
    assert find_teacher("sdxl") == whole and hub.asked == []
    half = find_teacher(f"sdxl@{hub.commit(SDXL.hub_id)}")
    assert half != whole and (half / HALF).is_file() and not (half / UNET).exists()
    assert set(hub.sent()) == {HALF}


def test_ids() -> None:
    assert parse_id("owner/name") == ("owner/name", None) and parse_id("owner/name@v1.0") == ("owner/name", "v1.0")
    for name in ("name", "a/b/c", "./a/b", "../b", "/a/b", "~/b", "a/b@", "a b/c"):
        assert parse_id(name) is None, name


def test_what_the_hub_refuses_is_one_line(hub: FakeHub, repo: Path) -> None:
    hub.gated.add(SDXL.hub_id)
    refused("sdxl", "terms", f"{hub.url}/{SDXL.hub_id}", "hf auth login")
    hub.gated.clear()
    refused("sdxl@v9", f"{SDXL.hub_id} has no revision v9")
    refused("owner/name", "no such folder", "knows no model owner/name", "--teacher PATH")
    (repo / UNET).unlink()
    refused("sdxl", "has no unet/ in safetensors; it holds sd_xl_base_1.0.safetensors")
    (repo / "sd_xl_base_1.0.safetensors").unlink()
    refused("sdxl", "has no unet/ in safetensors, but unet/diffusion_pytorch_model.bin, a pickle")
    assert hub.sent() == ["model_index.json"]


@pytest.mark.parametrize("token", [None, "hf_of_an_account_without_access"])
def test_gated_sd3_names_the_page_with_its_terms(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    """The hub answers 401 to strangers and 403 to accounts that have not accepted the terms."""
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: token)
    medium, newer = SD3.hub_id, "stabilityai/stable-diffusion-3.5-medium"
    hub.repos[medium] = hub.repos[newer] = asset("shapes-sd3")
    hub.gated |= {medium, newer}
    refused(
        "sd3", medium, "6.0 GB in float16, without T5", f"terms are accepted on {hub.url}/{medium}", "hf auth login"
    )
    refused(newer, f"terms are accepted on {hub.url}/{newer}", "hf auth login")
    hub.gated.clear()
    folder = find_teacher(newer)
    assert family_at(folder).name == "sd3" and default_recipes("sd3") == SD3.recipes
    hub.repos["owner/tuned"] = asset("shapes-sd3")
    hub.asked.clear()
    assert default_recipes("owner/tuned") is SD3.recipes and hub.sent() == ["model_index.json"]
    assert default_recipes("owner/unknown") is SDXL.recipes  # `find_teacher` reports why


OTHERS = ("FluxPipeline", "Flux2Pipeline", "QwenImagePipeline", "ZImagePipeline", "SanaPipeline", "WanPipeline",
          "PixArtSigmaPipeline", "StableDiffusionInpaintPipeline", "KandinskyV22Pipeline")  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_pipelines_that_cannot_be_distilled_are_refused_by_their_index_alone(
    name: str, hub: FakeHub, repo: Path
) -> None:
    index = repo / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionXLPipeline", name))
    families = ("sdxl (StableDiffusionXLPipeline)", "sd3 (StableDiffusion3Pipeline)", "sd15 (StableDiffusionPipeline)")
    for _ in range(2):  # the second time from the cache
        refused(SDXL.hub_id, f"is a {name}, which cannot be distilled (flashdmd distils ", *families)
        assert hub.sent() == ["model_index.json"]
    (repo / "model_index.json").write_text("{}")
    refused(f"{SDXL.hub_id}@{hub.commit(SDXL.hub_id)}", "is a pipeline without a class")


@pytest.mark.parametrize("name", ["sd15", "owner/fine-tune"])
def test_a_pipeline_with_parts_that_are_not_needed_is_fetched_without_them(
    name: str, hub: FakeHub, tiny_sd15_folder: Path, tmp_path: Path
) -> None:
    served = shutil.copytree(tiny_sd15_folder, tmp_path / "served" / "sd15")
    for extra in ("safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json", "v1-5.ckpt"):
        (served / extra).parent.mkdir(exist_ok=True)
        (served / extra).write_bytes(b"not needed")
    hub.repos[SD15.hub_id] = hub.repos["owner/fine-tune"] = served
    folder = find_teacher(name)
    assert set(files_below(folder)) == set(files_below(tiny_sd15_folder))
    assert family_at(folder) is SD15 and default_recipes(name) == SD15.recipes
    assert load_family(folder).name == "sd15"


def test_offline_is_one_line_at_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", closed)  # listens, and never answers
        monkeypatch.setattr("flashdmd_cli.runs.hub.TIMEOUT", 0.5)
        told = (SDXL.hub_id, "6.9 GB in float16", "cannot be reached", "--teacher PATH takes a local")
        refused("sdxl", *told)
    refused("sdxl", *told)  # refuses the connection
    refused("owner/name", "no such folder, and the weights of owner/name are not", "cannot be reached")
    assert time.monotonic() - began < 30


def test_a_full_disk_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused("sdxl", "the disk of", "has 1.0 kB", "HF_HOME=DIR")
    monkeypatch.undo()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), RuntimeError("I/O error (os error 28)")])
def test_a_disk_that_fills_is_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub.file_download, "_download_to_tmp_and_move", full)
    refused("sdxl", "cannot write to", "the disk is full")


def test_the_users_line_downloads_and_trains(hub: FakeHub, world: Path, shipped: Path, sam_folder: Path) -> None:
    hub.repos[SDXL.hub_id] = shipped / "shapes-sdxl"
    run("prepare-data", "shapes", "--num", 4)
    line = ["distill", "--teacher", "sdxl", "--steps", 4, "--ttur", 1, "--data", world / "runs" / "data-shapes"]
    small = {
        "train.batch": 1,
        "train.micro_batch": 1,
        "gan.decode": "full",
        "gan.sam": sam_folder,
    }
    short = [
        "--iterations",
        1,
        "--out",
        "o",
        *(word for key, value in small.items() for word in ("--set", f"{key}={value}")),
    ]
    result = run(*line, *short)
    assert result.exit_code == 0, result.output
    assert f"downloading {SDXL.hub_id} (" in result.stderr and "loading the teacher sdxl" in result.stderr
    teacher = read_manifest(world / "o").teacher
    assert teacher is not None and (teacher.id, teacher.hub, teacher.path) == ("sdxl", SDXL.hub_id, None)
    assert teacher.revision == hub.commit(SDXL.hub_id)
    process = command(hub, world / "home", *line, *short, HF_HUB_OFFLINE="1")
    out, said = process.communicate(timeout=60)
    lines = [line for line in said.splitlines() if not line.startswith("loading torch")]
    assert (process.returncode, out) == (3, "") and len(lines) == 1
    for text in (SDXL.hub_id, "6.9 GB", "--teacher PATH", "HF_HUB_OFFLINE"):
        assert text in said


def test_ctrl_c_ends_a_download_at_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.stall = {UNET}
    process = command(hub, tmp_path / "home", "distill", "--teacher", "sdxl", "--quiet")
    deadline = time.monotonic() + 60
    while UNET not in hub.sent() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert (process.returncode, out) == (130, "") and len(said.splitlines()) == 1, said
    assert not list((tmp_path / "home").rglob("*.incomplete"))


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_on_a_terminal_and_none_when_quiet(hub: FakeHub, repo: Path, tmp_path: Path, quiet: bool) -> None:
    (repo / UNET).write_bytes(bytes(11_000_000))
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    words = ["distill", "--teacher", "sdxl", "--set", "gan.sam=none", *(["--quiet"] if quiet else [])]
    process = command(hub, tmp_path / "home", *words, stderr=theirs)
    said = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            said += os.read(ours, 10_000)
    process.communicate()
    for descriptor in (ours, theirs):
        os.close(descriptor)
    assert (b"100%" in said, b"downloading" in said) == (not quiet, not quiet), said


def test_sam_is_downloaded_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = bytes(range(256)) * 20
    name = f"sam_vit_b_{hashlib.sha256(weights).hexdigest()[:6]}.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setitem(sam.SAM_FILES, "vit_b", (name, "375 MB"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    recipe = load_recipe("sdxl-4step")
    (tmp_path / "at").mkdir()
    with serving(FakeHub({"x/segment_anything": tmp_path / "at"})) as hub:
        monkeypatch.setattr(sam, "SAM_URL", f"{hub.url}/x/segment_anything/resolve/main")
        with pytest.raises(InputError, match="gan.sam: .*375 MB.*cannot be reached: Not Found"):
            sam.find_sam(recipe)
        (tmp_path / "at" / name).write_bytes(weights[:-1] + b"!")
        with pytest.raises(InputError, match="gan.sam: .*does not have the expected hash"):
            sam.find_sam(recipe)
        (tmp_path / "at" / name).write_bytes(weights)
        told = Listener()
        at = Path(sam.find_sam(recipe, told))
        assert told.lines == [f"downloading {sam.SAM_URL}/{name} (375 MB) to {at.parent}"]
        assert at == tmp_path / "torch" / "hub" / "checkpoints" / name and at.read_bytes() == weights
        hub.asked.clear()
        assert sam.find_sam(recipe) == at and hub.asked == [] and list(at.parent.iterdir()) == [at]
        at.unlink()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="375 MB.*HF_HUB_OFFLINE") as caught:
            sam.find_sam(recipe)
        assert "--set gan.sam=PATH" in caught.value.hint and hub.asked == []


def test_the_reward_model_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    served = tmp_path / "lrm"
    for root in ("lrm_sd15", "lrm_sdxl"):
        for name in ("unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin",
                     "text_encoder/config.json", "text_encoder/model.safetensors", "state_dict.pt"):  # fmt: skip
            (served / root / name).parent.mkdir(parents=True, exist_ok=True)
            (served / root / name).write_text(root + name)
    (served / "lrm_sdxl" / "text_encoder_2").mkdir()
    (served / "lrm_sdxl" / "text_encoder_2" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="--reward lrm_sdxl: .*casiatao/LRM"):
        find_reward("lrm_sdxl")
    hub.repos[LRM] = served
    folder = find_reward("lrm_sdxl")
    assert folder.name == "lrm_sdxl" and (folder / "state_dict.pt").read_text() == "lrm_sdxlstate_dict.pt"
    assert all(name.startswith("lrm_sdxl/") and not name.endswith(".bin") for name in hub.sent())
    hub.asked.clear()
    assert find_reward("lrm_sdxl") == find_reward(LRM) == folder and hub.asked == []
    assert reward_files(["unet/config.json", "state_dict.pt"])[1] == ["unet/*.safetensors"]


def test_what_is_chosen_of_a_repository() -> None:
    """By name alone, before anything is downloaded: a set that is cut short never counts as whole."""
    pipeline = ["model_index.json", *(f"{part}/{name}" for part in SDXL.networks for name in ("config.json", "m.txt"))]
    pipeline += ["tokenizer/vocab.json", "tokenizer_2/vocab.json", "scheduler/scheduler_config.json"]
    assert _configurations(SDXL, [*pipeline, "unet/model.safetensors"]) == (pipeline, [])
    cut = [name for name in pipeline if name != "unet/config.json"]
    assert _configurations(SDXL, cut)[1] == ["unet/config.json"] and _configurations(SDXL, pipeline[:-1])[1] == [
        "scheduler/"
    ]
    weights, half = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"
    alone = ["config.json", half, weights, "sdxl_vae.safetensors"]
    assert _autoencoder(alone) == (["config.json", weights], [])
    whole = [*pipeline, f"vae/{half}", f"vae/{weights}", f"unet/{weights}", "sd_xl_base_1.0.safetensors"]
    assert _autoencoder(whole) == (["vae/config.json", f"vae/{weights}"], [])
    assert _autoencoder(pipeline)[1] == [f"vae/{weights}"]
    full = [f"{part}/{weights}" for part in ("unet", "vae")] + [
        f"text_encoder{n}/model.safetensors" for n in ("", "_2")
    ]
    assert pipeline_files([*pipeline, *full])[1] == []
    assert pipeline_files([*cut, *full])[1] == ["unet/"]
    shards = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert pipeline_files([*pipeline, *full[1:], *shards])[1] == ["unet/"]
    assert pipeline_files([*pipeline, *full[1:], *shards, index])[1] == []
