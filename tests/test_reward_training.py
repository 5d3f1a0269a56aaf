"""Preference pairs from files, and a reward model that learns from them: alone, resumed, and from the command line."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import flashdmd_cli.building.pairs as building_pairs
from flashdmd_cli.building.pairs import build_pairs
from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.pairs import load_picture, prompt_weights, read_pairs, split_by_prompt
from flashdmd_cli.families.sdxl.reward import RewardConfig
from flashdmd_cli.families.sdxl.reward_files import new_reward
from flashdmd_cli.runs.checkpoint import latest_state, load_state
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import load_reward_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.shapes.counting import count_objects
from flashdmd_cli.shapes.inspector import load_inspector
from flashdmd_cli.training.reward import PairLatents, _step, accuracy, train_reward
from flashdmd_cli.training.state import Role

from .test_cli import fails, run, shipped, world  # noqa: F401
from .test_distill import QUIET, sam_folder  # noqa: F401

RED, BLUE = (255, 0, 0), (0, 0, 255)


def write_pairs(folder: Path, rows: list[dict], name: str = "pairs.jsonl") -> Path:
    for color, file in ((RED, "red.png"), (BLUE, "blue.png")):
        Image.new("RGB", (32, 32), color).save(folder / file)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(prompt: str = "a", label: object = 0, **columns: object) -> dict:
    return {"prompt": prompt, "image_0": "red.png", "image_1": "blue.png", "label": label} | columns


def red_wins(folder: Path, num: int = 24) -> Path:
    """Red is always better, on whichever side it stands."""
    rows = [row(f"prompt {i}", i % 2) | ({} if i % 2 == 0 else {"image_0": "blue.png", "image_1": "red.png"})
            for i in range(num)]  # fmt: skip
    return write_pairs(folder, rows)


# -- files --------------------------------------------------------------------------------------------------------


def test_rows_of_both_conventions(tmp_path):
    pick_a_pic = {"caption": "b", "jpg_0": "red.png", "jpg_1": "blue.png", "label_0": 1}
    pairs = read_pairs(write_pairs(tmp_path, [row(label=1), row(label="tie"), pick_a_pic]))
    assert [(p.prompt, p.label) for p in pairs] == [("a", 1.0), ("a", 0.5), ("b", 0.0)]
    written = write_pairs(tmp_path, [])
    rows = [row("two\u2028lines"), pick_a_pic | {"label_0": "1"}]
    written.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows), encoding="utf-8")
    assert [(p.prompt, p.label) for p in read_pairs(written)] == [("two\u2028lines", 0.0), ("b", 0.0)]
    assert load_picture(pairs[0].image_0, 8)[:, 0, 0].round().tolist() == [1, -1, -1]


def test_pictures_are_upright_and_cut_as_data_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    wide = Image.new("RGB", (32, 16), RED)
    wide.paste(BLUE, (0, 0, 16, 16))
    wide.save(tmp_path / "a.jpg", exif=exif, quality=100)
    picture = load_picture(tmp_path / "a.jpg", 16)
    # Upright it is 16 x 32 with blue above; the centre is blue above and red below.
    assert picture[2, 2].mean() > 0.9 and picture[0, -2].mean() > 0.9 and picture[0, 2].mean() < -0.9


def test_parquet_with_bytes(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write_pairs(tmp_path, [])
    red, blue = (tmp_path / "red.png").read_bytes(), (tmp_path / "blue.png").read_bytes()
    rows = [{"prompt": "a", "image_0": red, "image_1": {"bytes": blue, "path": None}, "label": 0.5}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "pairs.parquet")
    (pair,) = read_pairs(tmp_path / "pairs.parquet")
    assert load_picture(pair.image_1, 16)[:, 3, 3].round().tolist() == [-1, -1, 1] and pair.label == 0.5


def test_tables_of_other_tools(tmp_path):
    write_pairs(tmp_path, [])
    (tmp_path / "sub").mkdir()
    (tmp_path / "red.png").rename(tmp_path / "sub" / "red.png")
    rows = [row(label=1) | {"image_0": "sub\\red.png"}, row("b", "0.5") | {"image_0": "sub/red.png"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8-sig")
    with (tmp_path / "b.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for name in ("a.jsonl", "b.csv"):
        pairs = read_pairs(tmp_path / name)
        assert [(pair.prompt, pair.label) for pair in pairs] == [("a", 1.0), ("b", 0.5)]
        assert all(load_picture(pair.image_0, 8)[0].min() > 0.9 for pair in pairs)
    for text, said in (("[1]\n", "a.jsonl:1: is no object"), ("\n{broken\n", "a.jsonl:2: cannot be read")):
        (tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(DataError, match=said):
            read_pairs(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="none.jsonl cannot be read"):
        read_pairs(tmp_path / "none.jsonl")


def test_filters_hold_winners_and_ties_to_their_own_conditions(tmp_path):
    rows = [row("a", 0, gap=0.5), row("b", 1, gap=-0.2), row("c", 0.5, gap=0.01), row("d", 0.5, gap=0.3)]
    pairs = read_pairs(write_pairs(tmp_path, rows), keep=["gap>0"], keep_ties=["gap < 0.1"])
    assert [pair.prompt for pair in pairs] == ["a", "c"]


@pytest.mark.parametrize(
    ("rows", "keep", "said"),
    [
        ([row(label=2)], [], "row 0: label is 2"),
        ([{"prompt": "a"}], [], "row 0: has no image_0"),
        ([row() | {"image_0": "none.png"}], [], "no picture 'none.png'"),
        ([row()], ["gap>0"], "has no column gap"),
        ([row()], ["gap"], "is not of the form"),
        ([row()], ["gap>e"], "gap>e"),
        ([row(gap="large")], ["gap>0"], "none of its 1 pairs is left"),
        ([row() | {"image_0": "x" * 5000}], [], "no picture"),
        ([row(gap=0)], ["gap>0"], "none of its 1 pairs is left"),
        ([], [], "none of its 0 pairs"),
    ],
)
def test_doubtful_pairs_are_told(rows, keep, said, tmp_path):
    with pytest.raises(DataError, match=said.replace("[", r"\[")):
        read_pairs(write_pairs(tmp_path, rows), keep)


def test_held_out_prompts_are_never_learned_from(tmp_path):
    pairs = read_pairs(write_pairs(tmp_path, [row(f"prompt {i // 2}") for i in range(400)]))
    learned, held_out = split_by_prompt(pairs, 0.25)
    assert not {p.prompt for p in learned} & {p.prompt for p in held_out}
    assert 60 < len(held_out) < 140
    assert set(prompt_weights(learned).tolist()) == {0.5}


# -- learning -----------------------------------------------------------------------------------------------------


def recipe(**sets: object):
    flags = {"teacher": "shapes-sdxl", "train.batch": 4, "train.micro_batch": 2, "train.save_every": 10,
             "train.log_every": 1, "optim.lr": 3e-3, "optim.warmup": 0, "train.iterations": 20,
             "pairs.last_timestep": 251}  # fmt: skip
    return load_reward_recipe("reward/shapes", (), flags | {k.replace("__", "."): v for k, v in sets.items()})


def trained(family, pairs, out, **sets):
    r = recipe(**sets)
    torch.manual_seed(0)
    model = new_reward(family, RewardConfig(32, (1, 251), r.model.guidance))
    model.set_trainable(r.model.layers, r.model.text_encoders)
    before = [p.detach().clone() for p in model.parameters()]
    done, seconds = train_reward(r, family, model, pairs, pairs, out, QUIET, StopFlag())
    assert done == r.train.iterations and seconds > 0
    return model, before


def test_it_learns_what_is_better(tiny_family, tmp_path):
    pairs = read_pairs(red_wins(tmp_path))
    model, before = trained(tiny_family, pairs, tmp_path / "out")
    found = accuracy(model, PairLatents(pairs, tiny_family), 0)
    # Untrained latents are faint, so the noise of 249 hides much of them already.
    assert list(found) == [1, 249, 251] and found[1] == 1.0 and found[249] >= 0.75
    rows = read_metrics(tmp_path / "out")
    assert sum(r["loss"] for r in rows[-5:]) < 0.7 * sum(r["loss"] for r in rows[:5]) and rows[9]["accuracy/1"] >= 0.5
    moved = {name for (name, p), old in zip(model.named_parameters(), before, strict=True) if not torch.equal(p, old)}
    assert all(".attentions." in name or "projection" in name or name == "logit_scale" for name in moved)
    assert "visual_projection.weight" in moved and any(".attentions." in name for name in moved)


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
@pytest.mark.parametrize("per_prompt", [True, False])
def test_loss_is_the_weighted_mean_over_the_whole_batch(micro_batch, per_prompt, tiny_family, tmp_path, monkeypatch):
    """However the batch is cut; by prompt, the three pairs of one count as much as the one pair of another."""
    data = PairLatents(read_pairs(write_pairs(tmp_path, [row("a", 0)] * 3 + [row("b", 1)])), tiny_family)
    r = recipe(train__batch=8, train__micro_batch=micro_batch, pairs__per_prompt=per_prompt)
    model = new_reward(tiny_family, RewardConfig(32, (1, 251), None))

    def scores(model, family, latents, prompts, t, noise):  # side 0 ahead by 1, in logits
        return model.logit_scale * torch.tensor([[1.0], [0.0]]).expand(2, len(prompts)) / model.logit_scale.detach()

    monkeypatch.setattr("flashdmd_cli.training.reward.noisy_scores", scores)
    role = Role("reward", model, 0.0, r.optim, "optim.lr")
    figures = _step(r, tiny_family, model, role, data, 0)
    chosen = torch.randint(4, (8,), generator=generator(r.train.seed, 0, 0, "reward/pairs"))
    is_b = chosen == 3
    assert 0 < is_b.sum() < 8
    weights = torch.where(is_b, 1.0, 1 / 3 if per_prompt else 1.0)
    losses = torch.where(is_b, 1.0, 0.0) + math.log1p(math.exp(-1.0))
    assert figures["loss"] == pytest.approx(((weights * losses).sum() / weights.sum()).item())
    slope = torch.where(is_b, 1.0, 0.0) - 1 / (1 + math.e)
    expected = (weights * slope).sum() / weights.sum() / model.logit_scale.item()
    assert figures["grad_norm"] == pytest.approx(abs(expected.item()), rel=1e-4)


def test_resumed_training_equals_uninterrupted_training(tiny_family, tmp_path):
    pairs = read_pairs(red_wins(tmp_path, 8))
    sets = {"train__iterations": 4, "train__save_every": 2, "optim__decay": False}
    trained(tiny_family, pairs, tmp_path / "a", **sets)
    trained(tiny_family, pairs, tmp_path / "b", **sets | {"train__iterations": 2})
    trained(tiny_family, pairs, tmp_path / "b", **sets)
    one, two = (load_state(latest_state(tmp_path / name / "state"))[0] for name in "ab")
    assert [key for key in one if not torch.equal(one[key], two[key])] == [] and one.keys() == two.keys()
    assert (tmp_path / "a/metrics.jsonl").read_text() == (tmp_path / "b/metrics.jsonl").read_text()


def test_train_and_score_from_the_command_line(world):
    write = red_wins(world)
    words = ["reward", "train", "--pairs", write, "--teacher", "shapes-sdxl", "--iterations", 2, "--set",
             "train.batch=2", "--set", "train.micro_batch=2", "--out", "r"]  # fmt: skip
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["accuracy"]) == {"1", "249", "499", "749", "951"}
    assert json.loads((world / "r" / "manifest.json").read_text())["kind"] == "reward"
    page = (world / "r" / "page.html").read_text(encoding="utf-8")
    assert "finished" in page and "pairs per second" in page and "Pairwise cross-entropy" in page
    assert run("inspect", "r").exit_code == 0
    assert run(*words, "--quiet").stdout == "r\n"
    scored = run("reward", "score", "--reward", "r", "--prompt", "p", "--image", "red.png", "--image", "blue.png",
                 "--json")  # fmt: skip
    assert [Path(each["image"]).name for each in json.loads(scored.stdout)] == ["red.png", "blue.png"]
    assert "timestep  749" in run("reward", "score", "--reward", "r", "--pairs", write).stdout
    outside = ["--prompt", "p", "--image", "red.png", "--at", 999]
    fails(run("reward", "score", "--reward", "r", *outside), 2, "--at 999", "1 to 951")
    assert run("reward", "score", "--reward", "r", *outside[:-1], 1000).exit_code == 2
    fails(run("reward", "train", "--pairs", "none.jsonl", "--teacher", "shapes-sdxl"), 3, "--pairs none.jsonl")
    # What would make another run of it is refused: a length that the learning rate falls towards, other pairs.
    fails(run(*words, "--iterations", 3), 2, "train.iterations")
    write_pairs(world, [row(f"other {i}") for i in range(20)])
    fails(run(*words), 2, "--pairs")


def test_pairs_of_the_embedded_world(world, shipped):
    """Right beats wrong, equals tie; a second call draws nothing anew."""

    class Reads:
        """Sees the caption's attributes in bright pictures only."""

        def read(self, pictures):
            from flashdmd_cli.shapes.inspector import Inspector

            torch.manual_seed(0)
            return Inspector().eval().read(pictures)

    calls: list[int] = []

    def draw(texts, first):
        calls.append(first)
        return torch.zeros(len(texts), 3, 64, 64)

    path = build_pairs(draw, Reads(), world / "p", num=6, say=lambda _: None)  # type: ignore[arg-type]
    pairs = read_pairs(path)
    assert len(pairs) == 6 and len(calls) == 2 and calls[0] != calls[1]
    # The drawn half is alike on both sides, hence tied.
    assert [pair.label for pair in pairs[3:]] == [0.5] * 3
    before = path.read_text()
    build_pairs(draw, Reads(), world / "p", num=6, say=lambda _: None)  # type: ignore[arg-type]
    assert len(calls) == 2 and path.read_text() == before


@pytest.fixture
def rendered_pairs(tmp_path, monkeypatch):
    """Pairs of rendered pictures only, without ties on purpose; by keyword, the module's shares."""

    def make(**shares):
        for name, value in ({"RENDERED_TIES": 0.0, "RENDERED_SHARE": 1.0} | shares).items():
            monkeypatch.setattr(building_pairs, name, value)
        path = build_pairs(
            lambda texts, first: torch.zeros(len(texts), 3, 64, 64),
            load_inspector(asset("inspector")), tmp_path / str(shares), num=40, say=lambda _: None,
        )  # fmt: skip
        return [pair for pair in read_pairs(path) if pair.label != 0.5]

    return make


def test_sides_of_one_scene_differ_in_what_is_wrong_alone(rendered_pairs):
    def share_alike(pairs):
        one, two = (torch.stack([load_picture(getattr(p, side), 64) for p in pairs]) for side in ("image_0", "image_1"))
        return ((one - two).abs().amax(dim=1) < 0.15).float().mean().item()

    assert share_alike(rendered_pairs(THIRD_OBJECT=0.5, SAME_SCENE=1.0)) > 0.6
    assert share_alike(rendered_pairs(THIRD_OBJECT=0.5, SAME_SCENE=0.0)) < 0.3


def test_a_third_object_loses(rendered_pairs):
    """The inspector reads both sides right: what is wrong is known from the rendering alone."""
    pairs = rendered_pairs(THIRD_OBJECT=1.0)
    assert len(pairs) >= 36 and 0.2 < sum(pair.label for pair in pairs) / len(pairs) < 0.8

    def objects(images):
        return count_objects(torch.stack([load_picture(image, 64) for image in images]))

    losers = objects([pair.image_0 if pair.label else pair.image_1 for pair in pairs])
    winners = objects([pair.image_1 if pair.label else pair.image_0 for pair in pairs])
    assert (winners <= 2).all() and (losers == 3).float().mean() > 0.7
