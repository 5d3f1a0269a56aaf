"""What the parts of a training iteration cost, seen by replacing methods of an `Objective` for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective


@dataclass
class Part:
    """One part of an iteration, without backward passes, summed over its micro-batches."""

    seconds: float = 0.0
    tflop: float = 0.0


def by_part(
    objective: Objective, state: State, numbers: range, run: Callable[[int], float], counts: bool
) -> tuple[dict[str, Part], float, float]:
    """(parts without backward passes, all TFLOP, all seconds), each the mean of the iterations `numbers`.

    They are run with a clock that waits for the device around every part, and if `counts` once more with a counter of
    operations.
    """
    device, parts, inside = objective.family.device, dict[str, Part](), list[str]()
    counter: FlopCounterMode | None = None

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if inside:
                return function(*args, **kwargs)
            inside.append(name)
            part = parts.setdefault(name, Part())
            if counter is None:
                wait(device)
            began, before = time.perf_counter(), counter.get_total_flops() if counter else 0
            try:
                return function(*args, **kwargs)
            finally:
                inside.pop()
                if counter is None:
                    wait(device)
                    part.seconds += (time.perf_counter() - began) / len(numbers)
                else:
                    part.tflop += (counter.get_total_flops() - before) / 1e12 / len(numbers)

        return call

    names = {
        "simulate": "rollout",
        "adversarial_state": "rollout",
        "student_x0": "student",
        "dm_loss": "teacher and fake score",
        "fake_loss": "fake score's loss",
        "view": "VAE",
        "real_view": "VAE",
        "latent_logits": "discriminator",
    }
    with ExitStack() as stack:
        for attribute, name in names.items():
            stack.enter_context(_replaced(objective, attribute, watched(name, getattr(objective, attribute))))
        heads: Any = None if state.discriminator is None else state.discriminator.net
        if hasattr(heads, "extract_features"):
            stack.enter_context(_replaced(heads, "extract_features", watched("discriminator", heads.extract_features)))
        for role in state.roles:
            stack.enter_context(_replaced(role, "update", watched("optimizers", role.update)))
        seconds = sum(run(number) for number in numbers) / len(numbers)
        if not counts:
            return parts, 0.0, seconds
        with FlopCounterMode(display=False) as counter:
            for number in numbers:
                run(number)
    return parts, counter.get_total_flops() / 1e12 / len(numbers), seconds


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """A method of `owner` replaced for a while; `object.__setattr__` also changes a frozen dataclass."""
    object.__setattr__(owner, name, function)
    try:
        yield
    finally:
        object.__delattr__(owner, name)


def wait(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
