"""Stage 1 of Flash-DMD: Algorithm 1 of arXiv 2511.20549, and, by recipe, the methods it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from flashdmd_cli.data.shards import Batch
from flashdmd_cli.models.family import Conditioning, Family
from flashdmd_cli.runs.checkpoint import latest_state, state_folder
from flashdmd_cli.runs.randomness import generator
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.runs.tracking import Tracker
from flashdmd_cli.training.probe import Probe
from flashdmd_cli.training.state import Role, State, frozen
from flashdmd_cli.training.steps import Draws, Objective


class Data(Protocol):
    """Captioned pictures in an order that is a function of (seed, step)."""

    def batch(self, step: int, rank: int = 0, world: int = 1, batch: int = 1, seed: int = 0) -> Batch: ...


@dataclass(frozen=True)
class Watch:
    """What a run tells the outside: figures of an iteration, a warning, a student to preview."""

    progress: Callable[[int, dict[str, float]], None]
    warn: Callable[[str], None]
    preview: Callable[[nn.Module, int], None]


@dataclass
class Kept:
    """One micro-batch between the student's turn and those of fake score and discriminator; all detached."""

    draws: Draws
    cond: Conditioning
    pictures: Tensor
    x: Tensor
    view: Tensor | None = None


def distill(
    recipe: Recipe, family: Family, sam: str | Path, data: Data, out: Path, watch: Watch, stop: StopFlag
) -> State:
    """Train a student; `out` takes states and figures. The same call continues from the newest state.

    Returns the state, short of `recipe.train.iterations` if `stop` was requested; it is saved either way.
    """
    state = State.new(recipe, family, sam)
    saved = latest_state(out / "state")
    if saved is not None:
        state.load(saved)
    objective = Objective(recipe, family, family.grid(recipe.grid.steps))
    train, began, seconds = recipe.train, time.monotonic(), state.seconds
    with Tracker(out, start=state.iteration) as tracker:
        probe = Probe(state.probe)
        if state.iteration == 0:
            watch.preview(state.shipped_student(), 0)
        while state.iteration < train.iterations and stop.requested is None:
            figures = iteration(recipe, objective, state, data)
            state.iteration += 1
            state.images_seen += train.batch
            state.seconds = seconds + time.monotonic() - began
            for warning in probe.check(figures):
                watch.warn(warning)
            if state.iteration % train.log_every == 0:
                tracker.log(state.iteration - 1, figures)
            watch.progress(state.iteration, figures)
            if state.iteration % train.save_every == 0 or state.iteration == train.iterations:
                state.save(state_folder(out / "state", state.iteration))
            if state.iteration % train.preview_every == 0 or state.iteration == train.iterations:
                watch.preview(state.shipped_student(), state.iteration)
    if stop.requested is not None:
        state.save(state_folder(out / "state", state.iteration))
    return state


def iteration(recipe: Recipe, o: Objective, state: State, data: Data) -> dict[str, float]:
    """One iteration of Algorithm 1: the student in every `ttur`-th, then the fake score, then the discriminator."""
    train, n, figures = recipe.train, recipe.train.accumulation, Figures()
    student, fake = state.student, state.fake
    # One grid step for the whole iteration, on every rank: rollouts of unequal length would wait for each other.
    step_draw = generator(train.seed, 0, state.iteration, "grid step")
    index = recipe.dm_step_indices[int(torch.randint(len(recipe.dm_step_indices), (1,), generator=step_draw))]
    students_turn = state.iteration % recipe.fake.ttur == 0
    kept: list[Kept] = []

    for micro in range(n):
        draws = Draws(train.seed, 0, state.iteration, micro, next(student.net.parameters()).device)
        batch = data.batch(state.iteration * n + micro, batch=train.micro_batch, seed=train.seed)
        cond = o.family.encode(batch.captions)
        z = draws.normal("z", (train.micro_batch, *o.family.latent_shape))
        x_t = o.walk(student.net, z, cond, draws, 0, index, "rollout")  # backward simulation (lines 5-8)
        with torch.set_grad_enabled(students_turn), frozen(*(role.net for role in state.roles if role is not student)):
            x = o.student_x0(student.net, x_t, index, cond)  # line 10
            if students_turn:
                dm = o.dm_loss(x, o.family.teacher, fake.net, cond, draws)  # lines 13-14
                figures.add("dm", dm, n)
                figures.backward("dm", recipe.dm.weight * dm / n, x, keep_graph=recipe.gan.steps == "all")
            kept.append(Kept(draws, cond, batch.pixels.to(z.device), x.detach()))
            if state.discriminator is not None:
                adversarial_turn(recipe, o, state, state.discriminator, kept[-1], x, index, students_turn, figures)

    if students_turn:
        figures.values["grad_norm/student"] = student.update()  # line 17
        state.follow(recipe)  # line 18, Eq. 11

    for k in kept:  # lines 20-24: the fake score on the same, detached x
        loss = o.fake_loss(fake.net, k.x, k.cond, k.draws)
        figures.add("fake", loss, n)
        (loss / n).backward()
        if state.discriminator is not None:  # lines 25-26
            d_loss = discriminator_loss(recipe, o, state.discriminator.net, fake.net, k, figures)
            weight = recipe.gan.fake_weight if recipe.gan.kind == "latent" else 1.0
            (weight * d_loss / n).backward()
    figures.values["grad_norm/fake"] = fake.update()
    if state.discriminator is not None:
        figures.values["grad_norm/discriminator"] = state.discriminator.update()
    return figures.values | {f"updates/{name}": float(count) for name, count in state.updates.items()}


def adversarial_turn(
    recipe: Recipe, o: Objective, state: State, discriminator: Role, k: Kept, x: Tensor, index: int,
    students_turn: bool, figures: Figures,
) -> None:  # fmt: skip
    """The student's adversarial loss (line 15), with a graph of its own where it acts at the last step only."""
    gan, at_index, n = recipe.gan, index, recipe.train.accumulation
    if gan.steps == "last":
        # A second graph after the first was freed by its backward pass: only one denoiser graph is alive at a time.
        last = len(o.grid) - 1
        x_hat = o.adversarial_state(state.student.net, k.x, index, k.cond, k.draws)
        x, at_index = o.student_x0(state.student.net, x_hat, last, k.cond), last
    if gan.kind == "pixel":
        view = o.view(x, k.draws)
        k.view = view.detach()
    if not students_turn:
        return
    if gan.kind == "pixel":
        logits = discriminator.net(view)
    else:
        logits = o.latent_logits(discriminator.net, state.fake.net, x, k.cond, k.draws, "gan")
    loss = o.generator_loss(logits, at_index)
    figures.add("gan", loss, n)
    figures.backward("gan", gan.weight * loss / n, x)


def discriminator_loss(
    recipe: Recipe, o: Objective, heads: nn.Module, fake: nn.Module, k: Kept, figures: Figures
) -> Tensor:
    """Real pictures against the student's detached ones."""
    if recipe.gan.kind == "pixel":
        assert k.view is not None
        real_view = o.real_view(k.pictures, k.draws)
        real, made = heads(real_view), heads(k.view)
        figures.add("brightness/real", real_view.mean(), recipe.train.accumulation)
        figures.add("brightness/student", k.view.mean(), recipe.train.accumulation)
    else:
        x_real = o.family.encode_pictures(k.pictures)
        real = o.latent_logits(heads, fake, x_real, k.cond, k.draws, "real")
        made = o.latent_logits(heads, fake, k.x, k.cond, k.draws, "made")
    loss = o.discriminator_loss(real, made)
    figures.add("discriminator", loss, recipe.train.accumulation)
    return loss


class Figures:
    """Means over the micro-batches of an iteration."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, name: str, value: Tensor, of: int) -> None:
        """Add one micro-batch's share of a mean over `of` of them."""
        self.values[name] = self.values.get(name, 0.0) + value.item() / of

    def backward(self, name: str, loss: Tensor, x: Tensor, keep_graph: bool = False) -> None:
        """Backward pass that notes the weighted gradient's norm at the student's output `x`.

        The ratio of these norms says what lambda_adv means; it carries over between models where lambda_adv does not.
        """
        hook = x.register_hook(lambda g: self.values.__setitem__(f"output_grad/{name}", g.float().norm().item()))
        loss.backward(retain_graph=keep_graph)
        hook.remove()
