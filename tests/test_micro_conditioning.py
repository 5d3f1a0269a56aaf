"""`model.micro_conditioning`: what the networks are told of the sizes of the pictures they learn from."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from flashdmd_cli.cli.app import app
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.shards import ShardDataset, write_shards
from flashdmd_cli.families.files import Source
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows import align as align_workflow
from flashdmd_cli.workflows import distill as distill_workflow

from .test_distill import recipe
from .test_sdxl import draw

SIZES = [([8000, 4000], [8, 0]), ([80, 96], [0, 3])]
"""Original height and width, crop top and left."""


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    return buffer.getvalue()


def shards(folder: Path, **facts: Any) -> Path:
    """Two pictures of 32 pixels; `facts` replaces what is known of the second."""
    known = [{"original_size": size, "crop_top_left": corner} for size, corner in SIZES]
    known[1] |= facts
    write_shards(
        ({"__key__": str(i), "png": picture(), "txt": "a cat", "json": each} for i, each in enumerate(known)), folder
    )
    return folder


def test_time_ids_are_the_stock_pipelines(tiny_family: SDXLFamily, tmp_path: Path) -> None:
    """Of captions encoded now and of cached embeddings alike; a batch without sizes is square."""
    data, pipeline = ShardDataset(shards(tmp_path), sized=True), tiny_family.pipeline
    batch = data.batch(range(2))
    o = Objective(recipe(model__micro_conditioning="data"), tiny_family, tiny_family.grid(4))
    encoded = o.conditioning(batch)
    width = pipeline.text_encoder_2.config.projection_dim
    stock = [
        pipeline._get_add_time_ids(tuple(size), tuple(corner), (32, 32), torch.float32, width) for size, corner in SIZES
    ]
    assert torch.equal(encoded["time_ids"], torch.cat([stock[i] for i in data.indices(range(2))]))
    assert encoded["time_ids"].dtype == torch.float32
    cached = o.conditioning(replace(batch, text={name: encoded[name] for name in ("context", "pooled")}))
    assert torch.equal(cached["time_ids"], encoded["time_ids"])
    assert o.conditioning(replace(batch, sizes=None))["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2


def test_student_teacher_and_fake_score_are_told_the_same(tiny_family: SDXLFamily, tmp_path: Path) -> None:
    """The unconditional half of guidance too, as in the stock pipeline."""
    batch = ShardDataset(shards(tmp_path), sized=True).batch(range(2))
    o = Objective(recipe(model__micro_conditioning="data"), tiny_family, tiny_family.grid(4))
    cond, draws, told = o.conditioning(batch), Draws(0, 0, range(2), tiny_family.device), []
    nets = [tiny_family.base.copy().view() for _ in range(3)]
    for net in nets:
        net.base.net.register_forward_pre_hook(
            lambda _net, _args, kwargs: told.append(kwargs["added_cond_kwargs"]["time_ids"]), with_kwargs=True
        )
    student, teacher, fake = nets
    with torch.no_grad():
        x = o.student_x0(student, draw(tiny_family), 0, cond)
        o.dm_loss(x, teacher, fake, cond, draws)
        o.fake_loss(fake, x, cond, draws)
    assert [len(ids) for ids in told] == [2, 4, 2, 2]
    for ids in told:
        assert all(torch.equal(half, cond["time_ids"]) for half in ids.split(2))


@pytest.mark.parametrize(
    "facts", [{"original_size": None}, {"crop_top_left": [1]}, {"original_size": [1.5, 2]}, {"crop_top_left": [-1, 0]}]
)
def test_a_picture_without_sizes_is_named(facts: dict[str, Any], tmp_path: Path) -> None:
    name = next(iter(facts))
    data = ShardDataset(shards(tmp_path, **facts), sized=True)
    with pytest.raises(DataError, match=f"sample 1 has no {name}") as told:
        data.batch(range(2))
    assert "square" in told.value.hint


def test_prompts_alone_and_data_that_is_not_asked_are_square(tmp_path: Path) -> None:
    assert ShardDataset(shards(tmp_path / "pictures")).batch(range(1)).sizes is None
    import tarfile

    with tarfile.open(tmp_path / "prompts.tar", "w") as tar:
        info = tarfile.TarInfo("0.txt")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"a cat"))
    assert ShardDataset(tmp_path, sized=True).batch(range(1)).sizes is None


class Opened(Exception):
    """Carries what `open_data` was asked."""


@pytest.mark.parametrize(("told", "sized"), [("data", True), ("square", False)])
def test_both_stages_ask_the_data_for_sizes(
    told: str, sized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_data(data: Path, teacher: Path, sized: bool, reporter: object) -> None:
        raise Opened(sized)

    for module in (distill_workflow, align_workflow):
        monkeypatch.setattr(module, "open_data", open_data)
        monkeypatch.setattr(module, "find_source", lambda *_: Source(tmp_path))
        monkeypatch.setattr(module, "with_sam", lambda recipe, _: recipe)
    one = load_recipe("shapes-4step", flags={"model.micro_conditioning": told})
    two = load_recipe("align/shapes", flags={"model.micro_conditioning": told})
    assert load_recipe("sdxl-4step").model.micro_conditioning == "square"
    for start in (
        lambda: distill_workflow.distill(one, tmp_path, tmp_path / "out"),
        lambda: align_workflow.align(
            two,
            SimpleNamespace(manifest=SimpleNamespace(teacher=None, kind="distill"), folder=tmp_path),
            tmp_path / "out",
            data=tmp_path,
        ),
    ):
        with pytest.raises(Opened) as asked:
            start()
        assert asked.value.args == (sized,)


def test_the_embedded_worlds_pictures_have_no_sizes_and_the_command_says_so(tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["prepare-data", "shapes", "--out", str(tmp_path / "data"), "--num", "2"]).exit_code == 0
    words = ["distill", "--teacher", "shapes-sdxl", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    result = run(app, [*words, "--set", "model.micro_conditioning=data"])
    assert result.exit_code == 3 and "has no original_size" in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()
