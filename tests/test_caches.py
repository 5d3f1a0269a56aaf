"""Cached latents and embeddings: what they hold, when they are used, and that a run cannot tell the difference."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.sdxl.layout import dimensions
from flashdmd_cli.runs.files import size
from flashdmd_cli.runs.manifest import read_manifest, verify
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.workflows.encoders import encoders_hash
from flashdmd_cli.workflows.inputs.shards import open_data
from flashdmd_cli.workflows.prepare import caches
from flashdmd_cli.workflows.prepare.caches import forecast

from .messy import encoded, picture
from .test_cli import run, shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401

COLORS = ("red", "blue", "green")
NUM = 9


@pytest.fixture
def folder(world: Path) -> Path:
    """Nine pictures with three different captions."""
    (world / "in").mkdir()
    for index in range(NUM):
        (world / "in" / f"{index}.png").write_bytes(encoded(picture(index)))
        (world / "in" / f"{index}.txt").write_text(f"a plain {COLORS[index % 3]} circle above a striped blue ring")
    return world / "in"


def prepare(folder: Path, out: str, *words: object) -> Path:
    result = run("prepare-data", folder, "--out", out, "--teacher", "shapes-sdxl", "--shard-size", 4, *words)
    assert result.exit_code == 0, result.output
    return folder.parent / out


def test_caches_hold_what_the_encoders_say(folder, shipped, tiny_family):
    out = prepare(folder, "d", "--cache", "latents,text")
    assert verify(out) == []
    teacher = shipped / "shapes-sdxl"
    data, manifest = open_data(out, teacher)
    assert manifest.collection.cache.encoders == encoders_hash(teacher)
    batch = data.batch(range(NUM))
    expected = tiny_family.encode(batch.captions)
    # In other batches the last bit of float32 differs, which now and then rounds to the other neighbour in bf16.
    near = {"rtol": 2**-7, "atol": 1e-3}
    torch.testing.assert_close(batch.text["context"], expected["context"], **near)
    torch.testing.assert_close(batch.text["pooled"], expected["pooled"], **near)
    torch.testing.assert_close(batch.latents, tiny_family.encode_pictures(batch.pixels), **near)
    assert batch.latents.shape[2:] == (16, 16)
    texts = [load_file(path) for path in sorted(out.glob("*.text.safetensors"))]
    assert [len(tensors["prompts"]) for tensors in texts] == [3]  # each prompt once; later shards have no new one
    assert all(
        tensor.dtype == torch.bfloat16 for tensor in load_file(out / "pictures-000000.latents.safetensors").values()
    )


def test_caches_are_added_later_and_by_many(folder):
    whole = prepare(folder, "whole", "--cache", "latents,text")
    out = prepare(folder, "d")
    shards = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    prepare(folder, "d", "--cache", "text")
    assert read_manifest(out).collection.cache.what == ["text"]
    for index in (0, 1):
        result = run("prepare-data", folder, "--out", "d", "--teacher", "shapes-sdxl", "--shard-size", 4, "--cache",
                     "latents,text", "--json", "--shard-index", index, "--shard-count", 2)  # fmt: skip
        assert json.loads(result.stdout)["finished"] == (index == 1)
    assert read_manifest(out).collection.cache.what == ["latents", "text"] and verify(out) == []
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")} == shards
    for path in whole.glob("*.safetensors"):
        assert path.read_bytes() == (out / path.name).read_bytes()
    before = (out / "manifest.json").stat().st_mtime_ns
    prepare(folder, "d", "--cache", "latents")
    assert (out / "manifest.json").stat().st_mtime_ns == before and not (out / ".work").exists()


def test_a_cache_of_other_encoders_is_left_alone(folder, shipped):
    out = prepare(folder, "d", "--cache", "text")
    other = shutil.copytree(shipped / "shapes-sdxl", folder.parent / "other")
    config = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert open_data(out, shipped / "shapes-sdxl")[0].batch(range(1)).text is not None
    assert open_data(out, other)[0].batch(range(1)).text is None
    words = ["--teacher", other, "--data", out, "--out", "s", "--iterations", 1, "--set", "train.batch=2"]
    result = run("distill", "--recipe", "shapes-4step", *words, "--set", "train.micro_batch=2")
    assert result.exit_code == 0 and "not used" in result.stderr
    result = run("prepare-data", folder, "--out", "d", "--teacher", other, "--shard-size", 4, "--cache", "text",
                 "--resolution", 64)  # fmt: skip
    assert result.exit_code == 0 and read_manifest(out).collection.cache.encoders == encoders_hash(other)


@pytest.mark.parametrize("recipe", ["shapes-4step", "shapes-4step-dmd2"])
def test_the_first_step_has_the_same_losses(folder, recipe):
    losses = []
    for name, words in (("plain", []), ("cached", ["--cache", "latents,text"])):
        prepare(folder, name, *words)
        result = run("distill", "--recipe", recipe, "--data", name, "--out", f"run-{name}", "--iterations", 1,
                     *(word for key in ("train.batch=4", "train.micro_batch=4", "model.precision=bf16")
                       for word in ("--set", key)))  # fmt: skip
        assert result.exit_code == 0, result.output
        assert ("reading latents and text from the cache" in result.stderr) == (name == "cached")
        losses.append({key: value for key, value in read_metrics(Path(f"run-{name}"))[0].items()
                       if "grad" not in key})  # fmt: skip
    # In bf16, the cache holds what the networks read.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_forecast_is_what_is_written(folder, shipped, monkeypatch):
    original = Dimensions(1024, (4, 128, 128), {"context": (77, 2048), "pooled": (1280,)})
    assert size(forecast(original, 0, 1, ("text",))) == "318.0 kB"
    assert forecast(original, 1, 0, ("latents",)) == 131_072
    out = prepare(folder, "d", "--cache", "latents,text")
    tensors = [load_file(path) for path in out.glob("pictures-*.safetensors")]
    written = sum(tensor.nbytes for each in tensors for name, tensor in each.items() if name != "prompts")
    assert written == forecast(dimensions(shipped / "shapes-sdxl"), NUM, 3, ("latents", "text"))
    full = shutil.disk_usage(out)._replace(free=1000)
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda path: full)
    result = run("prepare-data", folder, "--out", "e", "--teacher", "shapes-sdxl", "--cache", "text")
    assert result.exit_code == 3 and "--cache text: needs" in result.stderr.splitlines()[-1]
    assert not list(folder.parent.glob("e/*.tar")) and "has 1.0 kB" in result.stderr


def test_a_damaged_cache_is_one_line(folder):
    out = prepare(folder, "d", "--cache", "text")
    path = out / "pictures-000000.text.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    result = run("distill", "--recipe", "shapes-4step", "--data", "d", "--out", "s")
    assert result.exit_code == 3 and result.stderr.splitlines()[-1].startswith("--data")
