"""The reward model of SD3: its score against the stock network, its files, and how it learns."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from flashdmd_cli.data.pairs import read_pairs
from flashdmd_cli.evaluation.generate import generate
from flashdmd_cli.families.reward import RewardDesign
from flashdmd_cli.families.sd3.family import SD3Family
from flashdmd_cli.families.sd3.reward import FlowReward, depths, load_reward, new_reward, save_reward
from flashdmd_cli.runs.checkpoint import latest_state, load_state
from flashdmd_cli.runs.device import resolve
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.recipe import load_reward_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.training.reward import PairLatents, accuracy, train_reward
from flashdmd_cli.workflows.inputs.families import load_family
from flashdmd_cli.workflows.inputs.reward_models import find_reward, load_reward_model, reward_files

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import QUIET, sam_folder  # noqa: F401
from .test_reward_training import red_wins

PROMPTS = ["a plain red circle above a striped blue ring", "a dotted green square left of a plain white ring"]
DESIGN = RewardDesign((1, 976), "adapters", False, 7.5, 2, 4.0)
NO_T5: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture(scope="module")
def family(tiny_sd3_folder: Path) -> SD3Family:
    return SD3Family.load(tiny_sd3_folder)


@pytest.fixture(scope="module")
def reward(family: SD3Family) -> FlowReward:
    """With adapters that change the features."""
    torch.manual_seed(3)
    model = new_reward(family, DESIGN).requires_grad_(False)
    for parameter in model.adapter:
        parameter.normal_(std=0.3)
    return model


def latents(num: int = 2) -> Tensor:
    return torch.randn(num, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def at(t: float, num: int = 2) -> Tensor:
    return torch.full((num,), t)


def test_depths_are_thirds_of_the_first_half() -> None:
    assert (depths(12), depths(4), depths(2), depths(1)) == ((4, 8, 12), (2, 3, 4), (1, 2), (1,))


def test_score_is_the_cosine_of_pooled_tokens_with_the_deepest_guided(
    reward: FlowReward, family: SD3Family, tiny_sd3_folder: Path
) -> None:
    stock = StableDiffusion3Pipeline.from_pretrained(tiny_sd3_folder, **NO_T5)
    net: Any = SD3Transformer2DModel.from_config(stock.transformer.config)
    # The adapters merged by hand: W + alpha / rank * B A.
    own, merged = reward.trunk.weights(), dict(stock.transformer.state_dict())
    for name in [name for name in own if ".lora_A." in name]:
        key = name.replace("lora_A.", "")
        merged[key] = merged[key] + 4.0 / 2 * own[name.replace("lora_A", "lora_B")] @ own[name]
    net.load_state_dict(merged)
    z, t = latents(), torch.tensor([900.0, 30.0])
    rows = []
    for texts in (PROMPTS, ["", ""]):
        seen: list[Tensor] = []
        blocks = net.transformer_blocks[:2]
        hooks = [each.register_forward_hook(lambda m, a, out, to=seen: to.append(out[1].mean(1))) for each in blocks]
        context, _, pooled, _ = stock.encode_prompt(texts, texts, texts, do_classifier_free_guidance=False)
        with torch.no_grad():
            net(z, context, pooled, t)
        rows.append((*seen, pooled))
        for hook in hooks:
            hook.remove()
    (first, second, text), (_, empty, _) = rows
    for guided, deepest in ((True, empty + 7.5 * (second - empty)), (False, second)):
        picture = torch.cat([first, deepest], 1) @ reward.visual_projection.weight.T
        expected = F.cosine_similarity(picture, text) / 0.07
        found = reward.score(z, t, reward.encode(PROMPTS), guided=guided)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # the adapters are the reward model's alone
        torch.testing.assert_close(
            family.teacher.output(z, t, family.encode(PROMPTS)),
            stock.transformer(z, *_texts(stock), t).sample, rtol=1e-5, atol=1e-5,
        )  # fmt: skip
    with pytest.raises(ValueError, match="timestep 990 lies outside 1 to 976"):
        reward.score(z, at(990.0), reward.encode(PROMPTS))
    # Rows are independent, and each prompt goes with its own candidates.
    four = reward.score(z.repeat_interleave(2, 0), t.repeat_interleave(2), reward.encode(PROMPTS).repeat(2))
    torch.testing.assert_close(four[::2], reward.score(z, t, reward.encode(PROMPTS)), rtol=1e-4, atol=1e-4)


def _texts(stock: StableDiffusion3Pipeline) -> tuple[Tensor, Tensor]:
    context, _, pooled, _ = stock.encode_prompt(PROMPTS, PROMPTS, PROMPTS, do_classifier_free_guidance=False)
    return context, pooled


def test_files(reward: FlowReward, family: SD3Family, tiny_sd3_folder: Path, tmp_path: Path) -> None:
    """The same scores from its files, also on a teacher stored in 16 bits; damage and other teachers are one line."""
    save_reward(reward, tmp_path / "r")
    z, t = latents(), at(750.0)
    again = load_reward(tmp_path / "r", family)
    expected = reward.score(z, t, reward.encode(PROMPTS))
    assert torch.equal(again.score(z, t, again.encode(PROMPTS)), expected)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    half = load_reward(tmp_path / "r", SD3Family.load(tiny_sd3_folder, weights="bf16"))
    torch.testing.assert_close(half.score(z, t, half.encode(PROMPTS)), expected, rtol=0.05, atol=0.05)
    save_reward(reward, tmp_path / "half", half=True)
    small = load_reward(tmp_path / "half", family)
    torch.testing.assert_close(small.score(z, t, small.encode(PROMPTS)), expected, rtol=0.01, atol=0.01)

    other = SD3Family.load(tiny_sd3_folder)
    next(other.base.net.parameters()).data.add_(1.0)
    with pytest.raises(InputError, match="--reward .*: was trained on another teacher"):
        load_reward_model(tmp_path / "r", other)
    values = json.loads((tmp_path / "half/reward.json").read_text())
    (tmp_path / "half/reward.json").write_text(json.dumps(values | {"lora_rank": 3}))
    with pytest.raises(InputError, match=r"adapter.safetensors: .* is \(2, 16\), not \(3, 16\)"):
        load_reward_model(tmp_path / "half", family)
    (tmp_path / "r/adapter.safetensors").unlink()
    with pytest.raises(InputError, match="has no adapter.safetensors") as caught:
        load_reward_model(tmp_path / "r", family)
    assert "casiatao/LRM" not in str(caught.value.hint)
    with pytest.raises(InputError, match="no such folder") as caught:
        find_reward("./runs/none", family="sd3")
    assert caught.value.hint == "flashdmd reward train makes one"
    ours = ["adapter.safetensors", "manifest.json", "projections.safetensors", "reward.json"]
    assert sorted(reward_files([*ours, "README.md"])[0]) == ours
    assert reward_files(ours[1:])[0] == []


def recipe(**sets: object) -> Any:
    flags = {"train.batch": 4, "train.micro_batch": 2, "train.save_every": 10, "train.log_every": 1, "optim.lr": 3e-3,
             "optim.warmup": 0, "train.iterations": 20, "pairs.last_timestep": 601}  # fmt: skip
    return load_reward_recipe("reward/shapes-sd3", (), flags | {k.replace("__", "."): v for k, v in sets.items()})


def trained(family: SD3Family, pairs: Any, out: Path, **sets: object) -> FlowReward:
    r = recipe(**sets)
    torch.manual_seed(0)
    model = new_reward(family, RewardDesign((1, 601), "adapters", False, r.model.guidance, 2, 2.0))
    train_reward(r, family, model, pairs, pairs, out, QUIET, StopFlag())
    return model


def test_it_learns_and_a_resumed_training_is_the_same(family: SD3Family, tmp_path: Path) -> None:
    before = family.content_hash()
    pairs = read_pairs(red_wins(tmp_path))
    model = trained(family, pairs, tmp_path / "a")
    found = accuracy(model, PairLatents(pairs, family), 0)
    # The ends of its range, and the candidates of a 4-step student with the shift 2.5: 714 and 882 are outside.
    assert list(found) == [1, 455, 601] and found[1] == 1.0 and found[455] >= 0.8
    assert family.content_hash() == before
    sets = {"train__iterations": 4, "optim__decay": False}
    trained(family, pairs, tmp_path / "b", **sets | {"train__iterations": 2})
    trained(family, pairs, tmp_path / "b", **sets)
    trained(family, pairs, tmp_path / "c", **sets)
    one, two = (load_state(latest_state(tmp_path / name / "state"))[0] for name in "bc")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    # A state holds what is trained, and nothing of the teacher.
    assert sum(key.startswith("reward.net.") for key in one) == len(model.adapter) + 2


def test_from_the_command_line(world: Path) -> None:
    write = red_wins(world)
    words = ["reward", "train", "--pairs", write, "--teacher", "shapes-sd3", "--iterations", 2, "--set",
             "train.batch=2", "--set", "train.micro_batch=2", "--out", "r"]  # fmt: skip
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["accuracy"]) == {"1", "455", "714", "882", "976"}
    assert json.loads((world / "r" / "manifest.json").read_text())["family"] == "sd3"
    assert run("inspect", "r").exit_code == 0
    score = ["reward", "score", "--teacher", "shapes-sd3", "--reward"]
    scored = run(*score, "r", "--prompt", "p", "--image", "red.png", "--image", "blue.png", "--json")
    assert scored.exit_code == 0 and len({each["score"] for each in json.loads(scored.stdout)}) == 2
    fails(run("reward", "score", "--reward", "r", "--prompt", "p", "--image", "red.png"), 3, "has no unet/config.json")
    wrong = [*words[:-1], "w", "--quiet", "--set"]
    fails(run(*wrong, "model.layers=all"), 2, "model.layers: is all", "model.layers=adapters")
    fails(run(*wrong, "model.text_encoders=true"), 2, "model.text_encoders: ")
    sdxl = ["reward", "train", "--pairs", write, "--teacher", "shapes-sdxl", "--out", "x", "--quiet", "--set"]
    fails(run(*sdxl, "model.layers=adapters"), 2, "model.layers: a reward model of SDXL has no adapters")
    assert not (world / "w").exists() and not (world / "x").exists()
    shutil.rmtree(world / "r")
    fails(run(*score, "r", "--prompt", "p", "--image", "red.png"), 3, "--reward r: no such folder")


def test_the_part_of_the_embedded_world(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs are sampled by the flow-matching teacher in eight steps, which fails about as often as a student."""
    drawn: list[Tensor] = []

    def pairs(draw: Any, inspector: Any, folder: Path, **options: Any) -> Path:
        drawn.append(draw([PROMPTS[0]] * 2, 5))
        folder.mkdir(parents=True)
        return red_wins(folder)

    monkeypatch.setattr("flashdmd_cli.building.pairs.build_pairs", pairs)
    result = run("shapes", "build", "sd3-reward", "--steps", 1, "--device", "cpu", "--work", "w", "--out", "r")
    assert result.exit_code == 0, result.output
    fails(run("shapes", "build", "vae", "--device", "cpu", "--out", "v"), 2, "--device: vae has no such setting")
    family = load_family(asset("shapes-sd3"), resolve("cpu"))
    expected = generate(family, family.teacher, [PROMPTS[0]] * 2, 0, "stochastic", 8, 4.0, first_index=5)
    torch.testing.assert_close(drawn[0], expected, rtol=1e-4, atol=1e-4)
    assert (world / "w" / "sd3-pairs" / "pairs.jsonl").is_file()
    assert load_reward(world / "r", family).config.lora_rank == 16
    assert find_reward(str(world / "r"), family="sd3") == world / "r"
    with pytest.raises(InputError, match="no embedded reward model of sd3") as caught:
        find_reward("embedded", family="sd3")
    assert "shapes build sd3-reward" in caught.value.hint
