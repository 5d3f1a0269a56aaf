"""Where a run trains and in which number format: asked of the machine, kept by the run, told to a person."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flashdmd_cli.runs import device
from flashdmd_cli.runs.device import Place, resolve
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.runs.manifest import hardware, read_manifest
from flashdmd_cli.runs.recipe import list_recipes, load_any_recipe, load_recipe
from flashdmd_cli.runs.resume import begin, place_of_run
from flashdmd_cli.runs.teacher import TeacherRecord

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

QUERIES = "from flashdmd_cli.runs.device import resolve; print(resolve('cpu'))"


def bf16_here(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(device, "has_native_bf16", lambda name: native)


def test_every_recipe_leaves_it_to_the_machine():
    for name in list_recipes():
        table = load_any_recipe(name).model
        assert (table.precision, table.device) == ("auto", "auto"), name


def test_auto_is_bf16_only_where_it_is_native(monkeypatch):
    bf16_here(monkeypatch, True)
    assert resolve("cpu") == Place("cpu", "bf16")
    assert resolve("cpu", "fp32") == Place("cpu", "fp32")
    assert str(resolve("cpu")) == f"running on cpu ({torch.get_num_threads()} threads) in bf16"
    bf16_here(monkeypatch, False)
    assert resolve("cpu") == Place("cpu", "fp32")
    assert str(resolve("cpu")).endswith("in fp32: no native bf16 here")
    assert "emulated here and slow" in str(resolve("cpu", "bf16"))


def test_the_accelerator_comes_first_and_a_missing_one_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve().device == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve().device == "cpu"
    with pytest.raises(UsageError, match="--device cuda: cuda is not available here"):
        resolve("cuda")


@pytest.mark.parametrize(
    ("capability", "onednn", "instructions", "native"),
    [("AVX512", True, True, True), ("AVX512", True, False, False), ("AVX2", True, True, False),
     ("AVX512", False, True, False), ("SVE256", True, False, True), ("DEFAULT", False, False, False)],
)  # fmt: skip
def test_what_counts_as_native_on_a_processor(capability, onednn, instructions, native, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert device._cpu_multiplies() is native
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert device._cpu_multiplies() is (native and not capability.startswith("AVX"))


def test_a_processor_held_down_to_avx2_has_none():
    held = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1",
                         "PYTHONPATH": str(Path(device.__file__).parents[2])}  # fmt: skip
    said = subprocess.run([sys.executable, "-c", QUERIES], env=held, capture_output=True, text=True, check=True).stdout
    assert said == "running on cpu (1 threads) in fp32: no native bf16 here\n"


def begun(recipe, out: Path, said: list[str]) -> Place:
    """What a run of `recipe` in `out` trains on; it has a state afterwards."""
    assert begin("distill", recipe, TeacherRecord(id=recipe.teacher), {}, out, said.append)
    place = place_of_run(recipe, out, said.append)
    (out / "state" / "step-000001").mkdir(parents=True, exist_ok=True)
    return place


def test_a_resumed_run_keeps_what_it_began_with(tmp_path, monkeypatch):
    from flashdmd_cli.runs import checkpoint

    monkeypatch.setattr(checkpoint, "latest_state", lambda folder: next(iter(folder.glob("*")), None))
    auto, out, said = load_recipe("shapes-4step"), tmp_path / "run", []
    bf16_here(monkeypatch, True)
    assert begun(auto, out, said) == Place("cpu", "bf16")
    bf16_here(monkeypatch, False)
    assert begun(auto, out, said) == Place("cpu", "bf16")
    assert "began on cpu in bf16" in said[-2] and "emulated here" in said[-1]
    # Named, it may be what it began with and nothing else; the device may change.
    assert begun(load_recipe("shapes-4step", ["model.precision=bf16"]), out, said).precision == "bf16"
    assert begun(load_recipe("shapes-4step", ["model.device=cpu"]), out, said).device == "cpu"
    with pytest.raises(UsageError, match="model.precision: is fp32, but the run .* was started with bf16"):
        begun(load_recipe("shapes-4step", ["model.precision=fp32"]), out, said)


def test_an_accelerator_that_is_gone_is_told(tmp_path, monkeypatch):
    from flashdmd_cli.runs import checkpoint

    monkeypatch.setattr(checkpoint, "latest_state", lambda folder: next(iter(folder.glob("*")), None))
    auto, out, said = load_recipe("shapes-4step"), tmp_path / "run", []
    monkeypatch.setattr(device, "available_devices", lambda: ["cuda", "cpu"])
    assert begun(auto, out, said) == Place("cuda", "fp32")
    monkeypatch.setattr(device, "available_devices", lambda: ["cpu"])
    assert begun(auto, out, said) == Place("cpu", "fp32")
    assert "began on cuda in fp32" in said[-2]


def test_a_run_tells_and_records_where_it_ran(world):  # noqa: F811
    run("prepare-data", "shapes", "--num", 8)
    small = ["--recipe", "shapes-4step", "--set", "train.batch=2", "--set", "train.micro_batch=2", "--out", "o"]
    done = run("distill", *small, "--iterations", 1, "--device", "cpu", "--set", "model.precision=bf16")
    assert done.exit_code == 0 and "in bf16, which is emulated here and slow" in done.stderr
    facts = read_manifest(world / "o").hardware
    assert (facts["device"], facts["precision"], facts["threads"]) == ("cpu", "bf16", torch.get_num_threads())
    assert json.loads((world / "o" / "device.json").read_text()) == {"device": "cpu", "precision": "bf16"}
    fails(run("distill", *small, "--iterations", 2, "--set", "model.precision=fp32", "-q"), 2, "started with bf16")
    prompt = ["sample", "--from", "o", "--prompt", "a plain red circle above a dotted blue ring", "--out", "s"]
    assert "in fp32" in run(*prompt).stderr
    assert read_manifest(world / "s").hardware["precision"] == "fp32"


def test_a_stage_1_on_another_machine_does_not_bind_stage_2():
    stage1 = load_recipe("shapes-4step", ["model.precision=bf16", "model.device=cuda", "gan.weight=0.25"])
    aligned = load_recipe("align/shapes", stage1=stage1)
    assert (aligned.model.precision, aligned.model.device, aligned.gan.weight) == ("auto", "auto", 0.25)


def test_the_machine_alone_says_nothing_of_networks():
    assert hardware().keys() & {"device", "precision"} == set()
