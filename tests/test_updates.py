"""One update of a role, and what the loop counts: clipping, decay, a gradient that is not finite, factors of losses."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import pytest
import torch
from torch import nn

from flashdmd_cli.core.schedules import add_noise, signal_weight
from flashdmd_cli.evaluation import generate as drawing
from flashdmd_cli.evaluation.preview import Preview
from flashdmd_cli.families.base import View
from flashdmd_cli.families.sdxl.reward import RewardConfig
from flashdmd_cli.families.sdxl.reward_files import new_reward
from flashdmd_cli.runs.manifest import Manifest, read_manifest, write_manifest
from flashdmd_cli.runs.recipe import load_reward_recipe
from flashdmd_cli.runs.resume import TEACHER
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tables import AdamW
from flashdmd_cli.runs.teacher import TeacherRecord
from flashdmd_cli.training.distill import iteration
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.loop import run
from flashdmd_cli.training.reward import train_reward
from flashdmd_cli.training.roles import Role
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows.training import write_checkpoint

from .test_distill import QUIET, bound, recipe, sam_folder, seeing  # noqa: F401
from .test_reward_training import read_pairs, red_wins

LR = 0.1


def role(**optim: object) -> Role:
    net = nn.Linear(2, 1, bias=False)
    nn.init.ones_(net.weight)
    return Role("student", net, LR, AdamW(**{"weight_decay": 0.0} | optim))


def learn(r: Role, *slopes: float) -> float:
    """A backward pass with these slopes, on top of whatever gradient is there, and an update."""
    (r.net.weight @ torch.tensor(slopes)).sum().backward()
    return r.update()


def test_the_norm_is_clipped_and_that_before_clipping_told():
    r = role(clip=0.5)
    assert learn(r, 3.0, 4.0) == pytest.approx(5.0)
    moment = r.optimizer.state[r.net.weight]["exp_avg"]
    torch.testing.assert_close(moment, 0.1 * 0.5 * torch.tensor([[0.6, 0.8]]))
    r = role(clip=50.0)
    learn(r, 3.0, 4.0)
    torch.testing.assert_close(r.optimizer.state[r.net.weight]["exp_avg"], 0.1 * torch.tensor([[3.0, 4.0]]))


def test_weights_decay():
    r = role(weight_decay=0.3)
    learn(r, 0.0, 0.0)
    torch.testing.assert_close(r.net.weight.detach(), torch.full((1, 2), 1 - LR * 0.3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_run_with_one_bad_gradient_goes_on_as_if_it_had_not_been(bad):
    hurt, spared = role(), role()
    for r in (hurt, spared):
        learn(r, 0.5, -0.25)
    learn(hurt, bad, 1.0)
    assert (hurt.bad_updates, hurt.updates) == (1, 1)
    for r in (hurt, spared):
        learn(r, -0.125, 0.5)
    assert torch.equal(hurt.net.weight, spared.net.weight) and hurt.net.weight.isfinite().all()
    assert (hurt.bad_updates, hurt.updates) == (0, 2) == (spared.bad_updates, spared.updates)


def test_a_loop_with_one_bad_loss_goes_on_from_where_it_was(tiny_family, random_data, monkeypatch):
    """The fake score is spared the iteration whose loss is not a number, and learns from the next."""
    r = recipe(gan__kind="none", fake__ttur=4)
    o, state = Objective(r, tiny_family, tiny_family.grid(4)), State.new(r, tiny_family)
    whole, factors = Objective.fake_loss, iter([1.0, float("nan"), 1.0, 1.0, 1.0])
    monkeypatch.setattr(Objective, "fake_loss", lambda *args: whole(*args) * next(factors))
    for state.iteration in range(3):
        iteration(r, o, state, random_data)
    assert state.updates["fake"] == 2 and state.fake.bad_updates == 0
    spared = State.new(r, tiny_family)
    for spared.iteration in (0, 2):
        iteration(r, o, spared, random_data)
    assert all(torch.equal(a, b) for a, b in zip(state.fake.parameters, spared.fake.parameters, strict=True))


@pytest.mark.parametrize("loss", ["dm", "gan"])
def test_a_loss_counts_by_its_weight(loss, tiny_family, sam_folder, random_data):
    norms = []
    for weight in (0.5, 1.5):
        r = recipe(**{f"{loss}__weight": weight})
        norms.append(iteration(r, *bound(r, tiny_family, sam_folder), random_data))
    key = f"output_grad/{loss}"
    assert norms[1][key] == pytest.approx(3 * norms[0][key], rel=1e-4) and norms[0][key] > 0
    other = "output_grad/gan" if loss == "dm" else "output_grad/dm"
    assert norms[1][other] == pytest.approx(norms[0][other])


@pytest.mark.parametrize("steps", ["last", "all"])
def test_soft_weights_are_those_of_the_step_at_hand(steps, tiny_family, sam_folder, random_data, monkeypatch):
    """The student's loss at a grid step is scaled by sqrt(alpha_bar) of that step's timestep, whichever was drawn."""
    plain = recipe(gan__steps=steps)
    soft = recipe(gan__steps=steps, gan__soft_weights=True)
    indices = set()
    for number in range(3):
        figures, timesteps = [], []
        with monkeypatch.context() as patched:
            x0 = View.x0

            def spy(self, x_t, t, cond, x0=x0, timesteps=timesteps):
                if torch.is_grad_enabled():
                    timesteps.append(int(t[0]))
                return x0(self, x_t, t, cond)

            patched.setattr(View, "x0", spy)
            for r in (plain, soft):
                o, state = bound(r, tiny_family, sam_folder)
                state.iteration = number
                figures.append(iteration(r, o, state, random_data, number)["gan"])
        t = timesteps[-1]
        weight = signal_weight(tiny_family.schedule, torch.tensor([t])).item()
        assert figures[1] == pytest.approx(weight * figures[0], rel=1e-4)
        indices.add(t)
    assert indices == {249} if steps == "last" else len(indices) > 1 and indices <= {999, 749, 499}


@pytest.mark.parametrize("index", [0, 2, 3])
def test_what_the_discriminators_step_starts_from(index, tiny_family):
    """`last_step`: the state that inference meets; `renoise`: a finished x0, noised to the last step with new noise."""
    x = torch.randn(2, 4, 8, 8)
    cond, net = tiny_family.encode(["a", "b"]), tiny_family.teacher
    draws, last = Draws(0, 0, range(2), torch.device("cpu")), torch.tensor([249, 249])

    def state(kind: str, x: torch.Tensor = x) -> torch.Tensor:
        o = Objective(recipe(gan__input=kind, gan__kind="none"), tiny_family, tiny_family.grid(4))
        return o.adversarial_state(net, x, index, cond, draws)

    schedule, noise = tiny_family.schedule, draws.normal("renoise", x.shape[1:])
    end = x
    for step, timestep in ((1, 749), (2, 499), (3, 249)):
        if step > index:  # walked down the rest of the grid, from the x0 of this step
            eps = draws.normal("carry" if step == index + 1 else f"carry/{step}", x.shape[1:])
            t = torch.tensor([timestep] * 2)
            noisy = add_noise(schedule, end, eps, t)
            with torch.no_grad():
                end = net.x0(noisy, t, cond)
    torch.testing.assert_close(state("renoise"), add_noise(schedule, end, noise, last))
    if index < 3:  # at the last step itself, the student's own graph serves
        torch.testing.assert_close(state("last_step"), noisy)


def test_adapters_are_scaled_by_alpha_over_rank(tiny_family):
    state = State.new(
        recipe(gan__kind="none", model__form="lora", model__lora_rank=2, model__lora_alpha=7), tiny_family
    )
    for view in (state.student.net, state.fake.net):
        modules = view.base.net.modules()
        scales = [m.scaling[view.adapters[-1]] for m in modules if hasattr(m, "scaling") and m.scaling]
        assert scales and set(scales) == {3.5}


def test_pictures_seen_are_counted_over_a_resume(tiny_family, tmp_path):
    for last in (3, 5):
        r = recipe(gan__kind="none", train__iterations=last, train__batch=6)
        state = run(r, State.new(r, tiny_family), dict, tmp_path, QUIET, StopFlag())
        assert (state.iteration, state.images_seen) == (last, last * 6)


def test_the_learning_rate_of_a_reward_model_falls_to_zero_after_its_last_update(tiny_family, tmp_path, monkeypatch):
    """Without a warm-up: as a share of its beginning 1, 3/4, 1/2, 1/4; the fifth update of four would have none."""
    rates, step = [], torch.optim.AdamW.step

    def spy(self, *args):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    pairs, lr = read_pairs(red_wins(tmp_path, 4)), 1e-3
    flags = {"train.batch": 1, "train.micro_batch": 1, "train.iterations": 4, "optim.warmup": 0, "optim.lr": lr}
    for decay in (True, False):
        model = new_reward(tiny_family, RewardConfig(32, guidance=None))
        r = load_reward_recipe("reward/shapes", flags=flags | {"optim.decay": decay, "model.precision": "fp32"})
        train_reward(r, tiny_family, model, pairs, [], tmp_path / str(decay), QUIET, StopFlag())
    assert rates == pytest.approx([lr, 0.75 * lr, 0.5 * lr, 0.25 * lr, lr, lr, lr, lr])


def test_a_preview_guides_the_teacher_and_not_the_student(tiny_family, tmp_path, monkeypatch):
    drawn = []

    def generate(family, net, captions, seed, sampler, steps, guidance, **_):
        drawn.append((net, sampler, steps, guidance))
        return torch.zeros(1, 3, 8, 8)

    monkeypatch.setattr(drawing, "generate", generate)
    start, student = (tiny_family.base.copy().view() for _ in range(2))
    show = Preview(recipe(dm__guidance=6.5), tiny_family, ["a"], tmp_path)
    show(student, start, 0)
    show(student, start, 2)
    teacher = tiny_family.teacher
    assert drawn == [(teacher, "ddim", 30, 6.5), (teacher, "ddim", 4, 6.5), (start, "few_step", 4, 1.0),
                     (student, "few_step", 4, 1.0)]  # fmt: skip


@pytest.mark.parametrize("averaged", [False, True])
def test_a_manifest_says_whether_the_average_was_shipped(averaged, tiny_family, tmp_path):
    r = recipe(gan__kind="none")
    state, data, out = State.new(r, tiny_family), tmp_path / "data", tmp_path / "out"
    data.mkdir()
    out.mkdir()
    (out / "preview.png").write_bytes(b"")
    write_manifest(data, Manifest(kind="data"))
    (out / TEACHER).write_text(TeacherRecord(id="tiny").model_dump_json())
    if averaged:
        state.average = state.student.net.base.copy(trainable=False).view()
        for p in state.average.parameters:
            p.add_(1)
    write_checkpoint("distill", r, tiny_family, state, data, out)
    assert read_manifest(out).weights.average == ("ema" if averaged else "raw")
    shipped = tiny_family.load_student(out / "student")
    wanted = (state.average if averaged else state.student).parameters
    assert all(torch.equal(a, b) for a, b in zip(shipped.parameters, wanted, strict=True))
