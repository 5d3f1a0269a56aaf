"""Reading a teacher: every tensor accounted for, every layout people have, and everything else told for what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, LCMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.core.weights import fit
from flashdmd_cli.families.files import Source, weight_files
from flashdmd_cli.families.reading import read_network, save_pipeline, write_text_names
from flashdmd_cli.families.sdxl.facts import SDXL
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.reading import KINDS
from flashdmd_cli.families.sdxl.reward import RewardConfig
from flashdmd_cli.families.sdxl.reward_files import RewardBase, load_reward, new_reward, save_reward
from flashdmd_cli.networks.sam import load_sam_encoder
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.shapes.inspector import Inspector, load_inspector
from tests.original import original, write_original
from tests.test_sdxl import CAPTIONS, draw

FILES = {part: "diffusion_pytorch_model" if part in ("unet", "vae") else "model" for part in SDXL.networks}


@pytest.fixture
def teacher(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "teacher")


@pytest.fixture(scope="module")
def picture(tiny_family: SDXLFamily) -> Tensor:
    return answer(tiny_family)


def answer(family: SDXLFamily) -> Tensor:
    """What a family makes of a noise and a caption: all four networks have a part in it."""
    x_t = draw(family, num=2, seed=3)
    with torch.no_grad():
        x0 = family.teacher.x0(x_t, torch.tensor([500.0, 900.0]), family.encode(CAPTIONS))
        return family.decode(x0)


def change(path: Path, how: Callable[[dict[str, Tensor]], Any]) -> None:
    held = load_file(path)
    how(held)
    save_file(held, path, metadata={"format": "pt"})


def drop(held: dict[str, Tensor]) -> None:
    del held[sorted(held)[5]]


def add(held: dict[str, Tensor]) -> None:
    held["added.weight"] = torch.zeros(2)


def reshape(held: dict[str, Tensor]) -> None:
    held[sorted(held)[5]] = torch.zeros(3, 3, 3)


@pytest.mark.parametrize("damage", [drop, add, reshape])
@pytest.mark.parametrize("part", SDXL.networks)
def test_a_network_that_does_not_fit_is_refused_by_its_first_tensor(part, damage, teacher):
    file = teacher / part / f"{FILES[part]}.safetensors"
    name = "added.weight" if damage is add else sorted(load_file(file))[5]
    change(file, damage)
    with pytest.raises(Unfit, match=f"^{part}/: ") as caught:
        SDXLFamily.load(teacher)
    # transformers 5.6 and later call the tensors of the first encoder without the prefix
    assert name.removeprefix("text_model.") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [drop, add, reshape])
def test_a_student_and_the_inspector_are_read_strictly_too(damage, tiny_family, tmp_path):
    tiny_family.save_network(tiny_family.base.net, tmp_path / "student")
    change(tmp_path / "student" / "diffusion_pytorch_model.safetensors", damage)
    with pytest.raises(ValueError, match="^student/: "):
        tiny_family.load_student(tmp_path / "student")
    held = Inspector().state_dict()
    damage(held)
    save_file(held, tmp_path / "inspector.safetensors")
    with pytest.raises(Unfit, match="inspector.safetensors: .*(missing|not part of|configuration has)"):
        load_inspector(tmp_path)
    sam = shutil.copytree(asset("shapes-sam"), tmp_path / "sam")
    # Of a whole SAM the encoder alone is read, so only what happens to it matters.
    change(sam / "model.safetensors", lambda held: on_encoder(held, damage))
    with pytest.raises(Unfit, match="gan.sam: .*model.safetensors: .*(missing|not part of|configuration has)"):
        load_sam_encoder(sam)


def on_encoder(held: dict[str, Tensor], damage: Callable[[dict[str, Tensor]], None]) -> None:
    encoder = {name: held.pop(name) for name in list(held) if name.startswith("image_encoder.")}
    own = {name.removeprefix("image_encoder."): value for name, value in encoder.items()}
    damage(own)
    held.update({f"image_encoder.{name}": value for name, value in own.items()})


def test_a_reward_model_is_read_strictly(tiny_family, tmp_path):
    model = new_reward(tiny_family, RewardConfig(resolution=32, guidance=None))
    for place, damage in (("unet/diffusion_pytorch_model", add), ("unet/diffusion_pytorch_model", drop),
                          ("text_encoder_2/model", add), ("projections", add)):  # fmt: skip
        folder = tmp_path / f"{place.replace('/', '-')}-{damage.__name__}"
        save_reward(model, folder)
        load_reward(folder, RewardBase.of(tiny_family))
        change(folder / f"{place}.safetensors", damage)
        with pytest.raises(Unfit if "/" in place else ValueError, match="not part of|missing"):
            load_reward(folder, RewardBase.of(tiny_family))


def test_fit_names_the_first_and_counts_the_others():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    held = dict(net.state_dict())
    assert fit(net, held) is net
    del held["0.weight"], held["1.running_mean"]
    with pytest.raises(ValueError, match="^0.weight is missing, and 1 more$"):
        fit(net, held)


def flat(held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): value for name, value in held.items()}


def prefixed(held: dict[str, Tensor]) -> dict[str, Tensor]:
    own = {n if n.startswith("text_projection") else f"text_model.{n}": v for n, v in flat(held).items()}
    return own | {"text_model.embeddings.position_ids": torch.arange(24)[None]}


@pytest.mark.parametrize("layout", [flat, prefixed])
def test_text_encoders_are_read_under_old_and_new_names(layout, teacher, picture):
    for part in ("text_encoder", "text_encoder_2"):
        path = teacher / part / "model.safetensors"
        save_file(layout(load_file(path)), path)
    assert torch.equal(answer(SDXLFamily.load(teacher)), picture)


def test_text_encoders_under_another_prefix_are_refused_with_it(teacher):
    path = teacher / "text_encoder" / "model.safetensors"
    save_file({f"clip.{name}": value for name, value in load_file(path).items()}, path)
    with pytest.raises(Unfit, match="is missing, and .* more .clip"):
        SDXLFamily.load(teacher)


def test_old_autoencoders_call_their_attention_otherwise(teacher, picture):
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    path = teacher / "vae" / "diffusion_pytorch_model.safetensors"
    held = load_file(path)
    for new, old in names.items():
        held = {name.replace(f"attentions.0.{new}", f"attentions.0.{old}"): value for name, value in held.items()}
    assert any(".query." in name for name in held)
    save_file(held, path)
    assert torch.equal(answer(SDXLFamily.load(teacher)), picture)


def split(folder: Path, stem: str, variant: str = "") -> None:
    """A file of weights in two parts with their index."""
    held = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    listed = {}
    for number in (0, 1):
        name = f"{stem}{variant}-0000{number + 1}-of-00002.safetensors"
        part = {key: held[key] for key in sorted(held)[number::2]}
        save_file(part, folder / name)
        listed |= dict.fromkeys(part, name)
    (folder / f"{stem}.safetensors.index{variant}.json").write_text(json.dumps({"weight_map": listed}))


def test_fp16_variants_shards_and_mixtures_are_read(teacher, picture):
    for part in ("unet", "text_encoder"):
        file = teacher / part / f"{FILES[part]}.safetensors"
        change(file, lambda held: held.update({key: value.half() for key, value in held.items()}))
        file.rename(file.with_name(f"{FILES[part]}.fp16.safetensors"))
    split(teacher / "vae", "diffusion_pytorch_model")
    split(teacher / "text_encoder_2", "model", ".fp16")
    family = SDXLFamily.load(teacher)
    assert {p.dtype for p in family.teacher.parameters} == {torch.float32}
    torch.testing.assert_close(answer(family), picture, rtol=1e-2, atol=1e-2)
    assert not torch.equal(answer(family), picture)  # half precision was read
    (teacher / "vae" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Unfit, match="vae/ lacks diffusion_pytorch_model-00002-of-00002"):
        SDXLFamily.load(teacher)


def test_full_precision_comes_first(teacher, picture):
    file = teacher / "unet" / "diffusion_pytorch_model.safetensors"
    halved = {key: value.half() for key, value in load_file(file).items()}
    save_file(halved, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert torch.equal(answer(SDXLFamily.load(teacher)), picture)


def test_one_file_in_the_original_layout_is_the_same_teacher(tiny_family, tiny_folder, picture, tmp_path):
    path = write_original(tiny_family.pipeline, tmp_path / "whole.safetensors")
    family = SDXLFamily.load(Source(path, config=tiny_folder))
    assert torch.equal(answer(family), picture)
    assert family.teacher.weights().keys() == tiny_family.teacher.weights().keys()
    assert family.content_hash() == tiny_family.content_hash()


@pytest.mark.parametrize("name", ["model.diffusion_model.time_embed.0.weight", "first_stage_model.decoder.conv_in.bias",
                                  "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
                                  "conditioner.embedders.1.model.text_projection"])  # fmt: skip
def test_one_file_is_read_strictly(name, tiny_family, tiny_folder, tmp_path):
    held = original(tiny_family.pipeline)
    del held[name]
    save_file(held, tmp_path / "whole.safetensors")
    with pytest.raises(Unfit, match="whole.safetensors: .* is missing"):
        SDXLFamily.load(Source(tmp_path / "whole.safetensors", config=tiny_folder))
    more = name.rpartition(".")[0] + ".unheard_of.weight"
    write_original(tiny_family.pipeline, tmp_path / "more.safetensors", **{more: torch.zeros(2)})
    if not name.startswith("conditioner.embedders.1"):
        with pytest.raises(Unfit, match="unheard_of.weight is not part of"):
            SDXLFamily.load(Source(tmp_path / "more.safetensors", config=tiny_folder))


def test_another_autoencoder_from_a_folder_and_from_a_file(tiny_family, tiny_folder, picture, tmp_path):
    torch.manual_seed(4)
    vae = AutoencoderKL.from_config(dict(tiny_family.vae.config) | {"scaling_factor": 0.5})
    vae.save_pretrained(tmp_path / "vae")
    family = SDXLFamily.load(Source(tiny_folder, vae=tmp_path / "vae"))
    assert family.vae.config.scaling_factor == 0.5 and not torch.equal(answer(family), picture)
    held = {key: value for key, value in original(tiny_family.pipeline).items() if key.startswith("first_stage_")}
    for prefix, name in (("", "alone"), ("first_stage_model.", "inside")):
        file = tmp_path / f"{name}.safetensors"
        save_file({prefix + key.removeprefix("first_stage_model."): value for key, value in held.items()}, file)
        assert torch.equal(answer(SDXLFamily.load(Source(tiny_folder, vae=file))), picture)


def test_what_is_saved_has_the_names_that_old_libraries_read(tiny_family, tmp_path):
    """transformers before 5 look for `text_model.` in both encoders, and for vocab.json and merges.txt."""
    save_pipeline(tiny_family.pipeline, tmp_path)
    names = load_file(tmp_path / "text_encoder" / "model.safetensors").keys()
    assert all(name.startswith("text_model.") for name in names)
    for part in ("tokenizer", "tokenizer_2"):
        assert json.loads((tmp_path / part / "vocab.json").read_text())["<|endoftext|>"]
        assert (tmp_path / part / "merges.txt").read_text().startswith("#version")
    back = read_network(KINDS["text_encoder"], tmp_path / "text_encoder")
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), tiny_family.pipeline.text_encoder.parameters(), strict=True))  # fmt: skip # noqa: E501


def test_only_clip_has_this_prefix_and_weights_have_their_libraries_names(tmp_path: Path) -> None:
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    save_file({"shared.weight": torch.ones(2)}, folder / "model.safetensors")
    write_text_names(folder)
    assert list(load_file(folder / "model.safetensors")) == ["shared.weight"]
    for part, name in (("transformer", "diffusion_pytorch_model"), ("text_encoder_2", "model")):
        (tmp_path / part).mkdir()
        with pytest.raises(Unfit, match=f"{part}/ has no {name}.safetensors"):
            weight_files(tmp_path / part)


def test_the_noise_of_one_file_is_as_its_marks_say(tiny_family, tiny_folder, tmp_path):
    """Trainers mark velocity and zero terminal SNR with empty tensors; nothing else in the file says it."""

    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    path = write_original(tiny_family.pipeline, tmp_path / "v.safetensors", **marks)
    config = SDXLFamily.load(Source(path, config=tiny_folder)).pipeline.scheduler.config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert not LCMScheduler.from_config(tiny_family.scheduler_config).config.rescale_betas_zero_snr
