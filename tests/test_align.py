"""Stage 2: who is updated when and by what, what makes a pair, and that a resumed run is the same run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from flashdmd_cli.core.transitions import log_density
from flashdmd_cli.families.base import View
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.sdxl.reward import LatentRewardModel, RewardConfig, RewardText
from flashdmd_cli.families.sdxl.reward_files import new_reward
from flashdmd_cli.runs.recipe import Recipe, load_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import read_metrics
from flashdmd_cli.training.align import align, distillation_iterations, margins, preference_step
from flashdmd_cli.training.collapse import CollapseProbe
from flashdmd_cli.training.distill import distill
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.networks import Stage1
from flashdmd_cli.training.pairs import Pairs, PairSampler, rank_candidates
from flashdmd_cli.training.stage1 import load_stage1
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective

from .conftest import repeatable
from .test_distill import QUIET, changed, sam_folder, seeing, weights  # noqa: F401

SMALL = {
    "train.batch": 2, "train.micro_batch": 1, "train.iterations": 4, "train.save_every": 2,
    "train.preview_every": 100, "train.log_every": 1, "gan.decode": "full", "dm.guidance": 2.0,
    "optim.lr_student": 1e-4,
    "optim.lr_fake": 1e-4, "optim.lr_discriminator": 1e-3, "optim.warmup_images": 0, "align.lr": 1e-4,
    "align.rl_ratio": 2, "align.threshold": [0.0, 0.0], "model.precision": "fp32",
}  # fmt: skip


def recipe(**sets: object) -> Recipe:
    flags = SMALL | {key.replace("__", "."): value for key, value in sets.items()}
    nulls = [f"{key}=null" for key, value in flags.items() if value is None]
    return load_recipe("sdxl-4step", nulls, flags)


@pytest.fixture(scope="module")
def reward(tiny_family) -> LatentRewardModel:
    torch.manual_seed(5)
    model = new_reward(tiny_family, RewardConfig(resolution=32, guidance=None)).requires_grad_(False)
    model.logit_scale.fill_(math.log(2000.0))
    return model


@pytest.fixture(scope="module")
def origin(tiny_family) -> Stage1:
    student, fake = (tiny_family.base.copy(trainable=False).view() for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for net in (student, fake):
        for p in net.parameters:
            p.add_(0.01 * torch.randn(p.shape, generator=generator))
    return Stage1(student, fake, None, 7)


@pytest.fixture
def parts(tiny_family, sam_folder, reward, origin):  # noqa: F811
    """Builds everything that a step takes."""

    def build(r: Recipe):
        state = State.new(seeing(sam_folder, r), tiny_family, origin)
        objective = Objective(r, tiny_family, tiny_family.grid(r.grid.steps))
        return objective, state, state.reference, PairSampler(objective, reward)

    return build


class Chosen:
    """A reward that likes latents with a large mean, and notes what it was asked."""

    def __init__(self, scale: float = 100.0) -> None:
        self.asked: list[tuple[int, int]] = []
        self.timesteps, self.is_half, self.scale = RewardConfig().timesteps, False, scale

    def encode(self, prompts) -> RewardText:
        return RewardText(torch.zeros(len(prompts), 1, 1), torch.zeros(len(prompts), 1))

    def score(self, latents, t, text, outside="refuse", guided=True):
        assert len(latents) == len(t) == len(text)
        self.asked.append((int(t[0]), len(latents)))
        return latents.mean((1, 2, 3)) * self.scale


def drawn(r: Recipe, o: Objective, student: View, chosen: Chosen, batch: int = 3):
    cond = o.family.encode(["a plain red circle above a striped blue ring"] * batch)
    draws = Draws(0, 0, range(batch), o.family.device)
    return PairSampler(o, chosen).draw(student, [""] * batch, cond, draws)  # type: ignore[arg-type]


# -- the pool -----------------------------------------------------------------------------------------------------


def test_candidates_of_a_step_are_scored_in_one_batch_at_their_own_noise_level(parts):
    r = recipe()
    o, state, *_ = parts(r)
    chosen = Chosen()
    pool, metrics = drawn(r, o, state.student.net, chosen)
    assert chosen.asked == [(749, 12), (499, 12)]
    assert [pairs.index for pairs in pool] == [0, 1]
    for pairs in pool:
        assert (pairs.winner.mean((1, 2, 3)) > pairs.loser.mean((1, 2, 3))).all() and len(pairs) == 3
    assert metrics["kept_pairs"] == 1.0
    # What the next step starts from is one of the candidates, not always the best.
    assert not torch.equal(pool[1].x_t, pool[0].winner)


@pytest.mark.parametrize(
    ("sets", "asked"),
    [
        ({"align__reward_timestep": "current"}, [999, 749]),
        ({"align__steps": "all_noise"}, [749, 499, 249]),
        ({"grid__steps": 8}, [874, 749]),
        ({"grid__steps": 2}, [499]),
        ({"align__pairs": "clean"}, [1]),
    ],
)
def test_which_levels_are_scored(sets, asked, parts):
    r = recipe(**sets)
    o, state, *_ = parts(r)
    chosen = Chosen()
    drawn(r, o, state.student.net, chosen)
    assert [t for t, _ in chosen.asked] == asked


def test_pairs_come_from_the_density_of_the_step(parts):
    """Winner and loser are equally likely a priori: both are draws of N(alpha x0, sigma^2), not of something else."""
    r = recipe()
    o, state, *_ = parts(r)
    pool, _ = drawn(r, o, state.student.net, Chosen(), batch=2)
    for pairs in pool:
        t_next = torch.full((2,), o.grid.timesteps[pairs.index + 1])
        x0 = o.student_x0(state.student.net, pairs.x_t, pairs.index, pairs.cond).detach()
        mode = o.family.schedule.alpha(t_next).view(-1, 1, 1, 1) * x0
        best = log_density(o.family.schedule, mode, x0, t_next)
        num = pairs.winner[0].numel()
        for z in (pairs.winner, pairs.loser):
            # Minus twice the log-density, less its constant, is chi-squared with `num` degrees of freedom.
            chi2 = 2 * (best - log_density(o.family.schedule, z, x0, t_next))
            assert ((chi2 - num).abs() < 6 * math.sqrt(2 * num)).all()


def test_threshold_grows_with_noise_and_drops_close_calls(parts):
    r = recipe(align__threshold=[0.45, 0.60])
    o, state, _, sampler = parts(r)
    assert 0.45 < sampler.least_gap(249) < sampler.least_gap(499) < sampler.least_gap(749) < 0.60
    assert sampler.least_gap(749) == pytest.approx(0.45 + 0.15 * 0.9713, abs=1e-4)
    none, metrics = drawn(r, o, state.student.net, Chosen(scale=1e-3))
    assert sum(map(len, none)) == 0 and metrics["kept_pairs"] == 0
    every, _ = drawn(r, o, state.student.net, Chosen(scale=1e4))
    assert sum(map(len, every)) == 6


@pytest.mark.parametrize("kind", ["noisy", "clean"])
def test_both_sides_of_a_pair_are_of_its_own_prompt(kind, parts, monkeypatch):
    """Also where the pairs before it are dropped: the candidates of the first prompt all have the same score."""

    class Numbered(Chosen):
        def encode(self, prompts) -> RewardText:
            return RewardText(torch.zeros(len(prompts), 1, 1), torch.arange(float(len(prompts)))[:, None])

        def score(self, latents, t, text, *told):
            return super().score(latents, t, text) * text.pooled[:, 0]

    def level(self, net, x_t, index, cond):  # a prediction that tells whose it is
        return cond["time_ids"][:, :1, None, None].expand_as(x_t)

    o, state, *_ = parts(recipe(align__pairs=kind))
    monkeypatch.setattr(Objective, "student_x0", level)
    levels = torch.tensor([[0.0], [100.0], [200.0]]).expand(3, 6)
    cond, draws = o.family.encode([""] * 3).replace(time_ids=levels), Draws(0, 0, range(3), o.family.device)
    pool, _ = PairSampler(o, Numbered()).draw(state.student.net, [""] * 3, cond, draws)  # type: ignore[arg-type]
    for pairs in pool:
        assert pairs.cond["time_ids"][:, 0].tolist() == [100.0, 200.0]
        drawn_at = {pairs.index + 1: (pairs.winner, pairs.loser), pairs.index: (pairs.x_t,)}
        for index, states in drawn_at.items():
            alpha = o.family.schedule.alpha(torch.tensor([o.grid.timesteps[index]])).item() if index else 0.0
            for z in states:
                torch.testing.assert_close(z.mean((1, 2, 3)), alpha * levels[1:, 0], atol=0.5, rtol=0)


def test_gap_is_that_of_the_softmax():
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
    verdict = rank_candidates(scores)
    win, lose = torch.tensor([3.0, 1.0]).softmax(0)
    assert (verdict.best[0], verdict.worst[0]) == (1, 0)
    assert verdict.gap[0].item() == pytest.approx((win - lose).item()) and verdict.gap[1] == 0


# -- the step -----------------------------------------------------------------------------------------------------


def test_one_forward_with_gradient_and_one_of_the_reference_per_pair(parts, random_data, monkeypatch, reward, origin):
    r = recipe()
    o, state, reference, sampler = parts(r)
    calls = {"gradient": 0, "reference": 0}
    original = View.x0

    def spy(view, x_t, t, cond):
        calls["gradient"] += len(x_t) * torch.is_grad_enabled()
        calls["reference"] += len(x_t) * (view == reference)
        return original(view, x_t, t, cond)

    monkeypatch.setattr(View, "x0", spy)
    metrics = preference_step(r, o, sampler, state, random_data, origin)
    assert metrics["pairs"] == 4  # two prompts, two steps
    assert calls == {"gradient": 4, "reference": 4}


def test_first_preference_step_is_at_ln_2_and_the_next_prefers_the_winner(parts, random_data, origin):
    r = recipe(align__lr=3e-4)
    o, state, _, sampler = parts(r)
    first = preference_step(r, o, sampler, state, random_data, origin)
    assert first["preference"] == pytest.approx(math.log(2)) and first["margin"] == first["kl"] == 0
    # The same pool again, since neither data nor noise moved: now the winners are more likely than under the reference.
    again = preference_step(r, o, sampler, state, random_data, origin)
    assert again["preference"] < math.log(2) and again["margin"] > 0 and again["kl"] > 0 and again["accuracy"] == 1


def log_ratio_of_winners(o, student, reference, pairs: Pairs) -> torch.Tensor:
    """H (P,) from the explicit densities of Eq. 13: what the student gained on the winner, less that on the loser."""
    t_next = torch.full((len(pairs),), o.grid.timesteps[pairs.index + 1])
    total = torch.zeros(len(pairs))
    for z, side in ((pairs.winner, 1), (pairs.loser, -1)):
        for net, sign in ((student, 1), (reference, -1)):
            x0 = o.student_x0(net, pairs.x_t, pairs.index, pairs.cond).detach()
            total += side * sign * log_density(o.family.schedule, z, x0, t_next)
    return total


def test_margin_is_that_of_the_densities(parts):
    """Of the winner over the loser, not the other way round."""
    r = recipe()
    o, state, reference, _ = parts(r)
    with torch.no_grad():
        for p in state.student.parameters:
            p.mul_(1.01)
    for pairs in drawn(r, o, state.student.net, Chosen())[0]:
        expected = log_ratio_of_winners(o, state.student.net, reference, pairs)
        assert expected.abs().min() > 0.01
        torch.testing.assert_close(margins(o, state.student.net, reference, pairs)[0], expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("form", ["full", "lora"])
def test_only_the_student_moves_in_a_preference_step(form, parts, random_data, origin, tiny_family):
    r = recipe(model__form=form, model__lora_rank=4)
    o, state, _, sampler = parts(r)
    nets = [state.fake.net, state.discriminator.net, tiny_family.teacher, sampler.reward, origin.student]
    before, student = [weights(net) for net in nets], weights(state.student.net)
    preference_step(r, o, sampler, state, random_data, origin)
    assert [changed(b, net) for b, net in zip(before, nets, strict=True)] == [False] * 5
    assert changed(student, state.student.net)
    assert not any(p.grad is not None for role in state.roles for p in role.parameters)


def test_an_empty_pool_updates_nothing(parts, random_data, origin):
    r = recipe(align__threshold=[1.0, 1.0])
    o, state, _, sampler = parts(r)
    before = weights(state.student.net)
    metrics = preference_step(r, o, sampler, state, random_data, origin)
    assert metrics["pairs"] == 0 and "preference" not in metrics and not changed(before, state.student.net)
    assert state.updates["preference"] == 0


@pytest.mark.parametrize("form", ["full", "lora"])
def test_reference_is_the_stage_1_student_whatever_training_does(form, parts, random_data, origin):
    r = recipe(model__form=form, model__lora_rank=4, align__lr=1e-3)
    o, state, _, sampler = parts(r)
    for _ in range(2):
        preference_step(r, o, sampler, state, random_data, origin)
    cond = o.family.encode(["a plain red circle above a striped blue ring"])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = o.student_x0(origin.student, x, 0, cond)
    torch.testing.assert_close(o.student_x0(state.reference, x, 0, cond), expected)
    assert (o.student_x0(state.student.net, x, 0, cond) - expected).abs().max() > 1e-4
    # No weights of its own: those below the student's adapter, or stage 1's as they came.
    assert state.reference.base is (state.student.net.base if form == "lora" else origin.student.base)


def test_clean_pairs_have_the_margin_of_both_trajectories(parts):
    """PSO's pairs start from different states, so each side has its own prediction."""
    r = recipe(align__pairs="clean", align__candidates=2)
    o, state, reference, _ = parts(r)
    with torch.no_grad():
        for p in state.student.parameters:
            p.mul_(1.01)
    pool, _ = drawn(r, o, state.student.net, Chosen())
    assert [pairs.index for pairs in pool] == [0, 1, 2]
    # One noise to begin with, two ways from there.
    assert torch.equal(pool[0].x_t, pool[0].x_t_loser) and not torch.equal(pool[1].x_t, pool[1].x_t_loser)
    assert torch.equal(pool[1].x_t, pool[0].winner)
    pairs = pool[1]
    t_next = torch.full((len(pairs),), 499)
    sides = []
    for z, x_t in ((pairs.winner, pairs.x_t), (pairs.loser, pairs.x_t_loser)):
        for net, sign in ((state.student.net, 1), (reference, -1)):
            x0 = o.student_x0(net, x_t, 1, pairs.cond)
            sides.append(sign * log_density(o.family.schedule, z, x0, t_next))
    expected = sides[0] + sides[1] - sides[2] - sides[3]
    torch.testing.assert_close(margins(o, state.student.net, reference, pairs)[0], expected, rtol=1e-3, atol=2e-3)


def test_split_covers_every_pair():
    cond = Conditioning({"context": torch.arange(5.0)[:, None, None]})
    z = torch.arange(5.0)[:, None, None, None]
    parts = list(Pairs(1, z, z + 1, z + 2, cond, z + 3).split(2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.x_t_loser for part in parts]), z + 3)
    assert torch.equal(Conditioning.cat([part.cond for part in parts])["context"], cond["context"])


# -- the joint loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "ttur", "updates"),
    [
        (1, 1, {"student": 6, "fake": 6, "discriminator": 6, "preference": 6}),
        (2, 1, {"student": 3, "fake": 3, "discriminator": 3, "preference": 6}),
        (5, 2, {"student": 2, "fake": 3, "discriminator": 3, "preference": 6}),
        (5, 5, {"student": 2, "fake": 6, "discriminator": 6, "preference": 6}),
        (None, 1, {"student": 0, "fake": 0, "discriminator": 0, "preference": 6}),
    ],
)
def test_ratio_counts_preference_steps_for_each_student_update_of_stage_1(
    ratio, ttur, updates, tiny_family, sam_folder, reward, origin, random_data, tmp_path  # noqa: F811
):  # fmt: skip
    r = recipe(align__rl_ratio=ratio, fake__ttur=ttur, train__iterations=6)
    state = align(seeing(sam_folder, r), tiny_family, reward, origin, random_data, tmp_path, QUIET, StopFlag())
    assert state.updates == updates and state.iteration == 6
    rows = read_metrics(tmp_path)
    assert ["dm" in row for row in rows] == [bool(ratio) and step % ratio == 0 for step in range(6)]
    assert all("preference" in row for row in rows)


@pytest.mark.parametrize(
    ("ratio", "ttur", "before", "turns"),
    [
        (5, 5, 120, [[120], [121], [122], [123], [124], [125]]),
        (5, 1, 7, [[7], [], [], [], [], [8]]),
        (5, 2, 7, [[8], [], [9], [], [], [10]]),
        (2, 5, 120, [[120, 121, 122], [123, 124], [125, 126, 127], [128, 129], [130, 131, 132], [133, 134]]),
        (None, 1, 120, [[], [], [], [], [], []]),
    ],
)
def test_iterations_of_stage_1_are_spread_over_preference_steps(ratio, ttur, before, turns):
    """The first of each `rl_ratio` iterations is the student's turn, and no number comes twice or is left out."""
    r = recipe(align__rl_ratio=ratio, fake__ttur=ttur)
    assert [list(distillation_iterations(r, step, before)) for step in range(6)] == turns


def test_metrics_of_an_iteration_are_those_of_its_first_turn_of_stage_1(
    tiny_family, sam_folder, reward, origin, random_data, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    monkeypatch.setattr("flashdmd_cli.training.align.distill.iteration", lambda *args: {"fake": float(args[-1])})
    r = recipe(align__rl_ratio=2, fake__ttur=4, train__iterations=2)
    align(seeing(sam_folder, r), tiny_family, reward, origin, random_data, tmp_path, QUIET, StopFlag())
    assert [row["fake"] for row in read_metrics(tmp_path)] == [8.0, 10.0]


def test_the_regulariser_is_an_iteration_of_stage_1_with_noise_of_its_own(
    tiny_family, sam_folder, reward, origin, random_data, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    """Numbered on from stage 1's, of which none comes again."""
    from flashdmd_cli.training import distill

    asked = []
    whole = distill.iteration
    monkeypatch.setattr(
        distill, "iteration", lambda r, o, s, d, number: asked.append(number) or whole(r, o, s, d, number)
    )
    r = recipe(align__rl_ratio=2, train__iterations=4)
    align(seeing(sam_folder, r), tiny_family, reward, origin, random_data, tmp_path, QUIET, StopFlag())
    assert asked == [origin.iteration, origin.iteration + 1]


@pytest.mark.parametrize("sets", [{}, {"model__form": "lora", "model__lora_rank": 4}, {"align__optimizer": "shared"}])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(
    sets, tiny_family, sam_folder, reward, origin, random_data, tmp_path  # noqa: F811
):  # fmt: skip
    def go(iterations: int, out: Path) -> State:
        r = recipe(**sets, train__iterations=iterations, train__average_images=20, probe__every=2,
                   probe__num_prompts=2, probe__num_seeds=2)  # fmt: skip
        objective = Objective(r, tiny_family, tiny_family.grid(4))
        probe = CollapseProbe(objective, ["a plain red circle above a striped blue ring"] * 2)
        return align(seeing(sam_folder, r), tiny_family, reward, origin, random_data, out, QUIET, StopFlag(), probe)

    whole = go(4, tmp_path / "a")
    go(2, tmp_path / "b")
    rest = go(4, tmp_path / "b")
    for one, two in zip(whole.roles, rest.roles, strict=True):
        a, b = one.tensors(), two.tensors()
        assert a.keys() == b.keys() and [key for key in a if not torch.equal(a[key], b[key])] == []
    assert repeatable(tmp_path / "a") == repeatable(tmp_path / "b")
    assert whole.probe == rest.probe


# -- where it starts ----------------------------------------------------------------------------------------------


def answer(view: View) -> torch.Tensor:
    """What a network sees in one noisy state."""
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    cond = view.base.calls.encode(["a plain red circle above a striped blue ring"])
    return view.x0(x, torch.tensor([749.0]), cond).detach()


@pytest.fixture(params=["full", "lora"])
def left(request, tiny_family, sam_folder, random_data, tmp_path):  # noqa: F811
    """A run of stage 1 in one form or the other: its recipe and its last state, with the student in `tmp_path`."""
    flags = SMALL | {"model.form": request.param, "model.lora_rank": 4, "train.iterations": 2, "optim.lr_fake": 1e-3,
                     "optim.lr_student": 1e-3}  # fmt: skip
    stage1 = load_recipe("sdxl-4step", flags={k: v for k, v in flags.items() if not k.startswith("align")})
    state = distill(seeing(sam_folder, stage1), tiny_family, random_data, tmp_path, QUIET, StopFlag())
    tiny_family.save_network(state.shipped.merged(), tmp_path / "student")
    return stage1, state


def test_stage_1_is_what_it_left(left, tiny_family, sam_folder, tmp_path):  # noqa: F811
    stage1, state = left
    r = recipe()
    found = load_stage1(tmp_path, 2, stage1, r, tiny_family)
    assert not changed(weights(state.shipped.merged()), found.student) and found.iteration == 2
    assert not changed(weights(state.fake.net.merged()), found.fake)
    new = State.new(seeing(sam_folder, r), tiny_family, found)
    assert not changed(weights(state.discriminator.net), new.discriminator.net)
    assert not changed(weights(found.student), new.student.net) and not changed(weights(found.fake), new.fake.net)
    other = load_stage1(tmp_path, 2, stage1, recipe(gan__kind="none"), tiny_family)
    assert other.heads is None
    # A checkpoint that was copied without its state: the fake score begins as the student.
    gone = load_stage1(tmp_path, 3, stage1, r, tiny_family)
    assert gone.fake is None and gone.heads is None
    new = State.new(seeing(sam_folder, r), tiny_family, gone)
    assert not changed(weights(gone.student), new.fake.net) and not changed(weights(gone.student), new.student.net)


def test_adapters_go_on_top_of_what_stage_1_left(left, tiny_family, sam_folder, tmp_path):  # noqa: F811
    """Its networks, or frozen below the new ones its adapters on the teacher, which all roles then share."""
    stage1, state = left
    r = seeing(sam_folder, recipe(model__form="lora", model__lora_rank=2, train__average_images=20))
    new = State.new(r, tiny_family, load_stage1(tmp_path, 2, stage1, r, tiny_family))
    for view, before in ((new.student.net, state.student.net), (new.average, state.student.net),
                         (new.reference, state.student.net), (new.fake.net, state.fake.net),
                         (new.teacher, tiny_family.teacher)):  # fmt: skip
        torch.testing.assert_close(answer(view), answer(before), rtol=1e-5, atol=1e-5)
    assert (answer(new.student.net) - answer(new.teacher)).abs().max() > 1e-3
    assert (answer(new.student.net) - answer(new.fake.net)).abs().max() > 1e-3
    own = {id(p) for role in (new.student, new.fake) for p in role.parameters} | {id(p) for p in new.average.parameters}
    assert len(own) == 3 * len(new.student.parameters)
    for view in (new.student.net, new.fake.net):
        learns = {id(p) for p in view.base.net.parameters() if p.requires_grad}
        assert learns <= own and {id(p) for p in view.parameters} <= learns
    shared = {id(view.base) for view in (new.teacher, new.student.net, new.fake.net, new.average, new.reference)}
    assert len(shared) == (1 if stage1.model.form == "lora" else 3)


def test_adapters_go_on_top_of_stage_1s_own_fake_score(tiny_family, sam_folder, origin):  # noqa: F811
    state = State.new(seeing(sam_folder, recipe(model__form="lora", model__lora_rank=4)), tiny_family, origin)
    for view, plain in ((state.student.net, origin.student), (state.fake.net, origin.fake)):
        merged = view.merged().state_dict()
        assert all(torch.equal(merged[key], value) for key, value in plain.weights().items())


def test_reference_of_an_adapter_is_the_network_below_it(tiny_family, origin):
    state = State.new(recipe(model__form="lora", gan__kind="none"), tiny_family, origin)
    with torch.no_grad():
        for p in state.student.parameters:
            p.add_(0.1)
    learns = [p for p in state.student.net.base.net.parameters() if p.requires_grad]
    assert state.reference.base is state.student.net.base and state.reference.adapters == ()
    assert torch.equal(answer(state.reference), answer(origin.student))
    assert (answer(state.student.net) - answer(state.reference)).abs().max() > 1e-3
    assert [p for p in state.student.net.base.net.parameters() if p.requires_grad] == learns == state.student.parameters
