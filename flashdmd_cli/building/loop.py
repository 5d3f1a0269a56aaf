"""The training loop of all builders: cosine learning-rate decay, averaged weights, checkpoints, resuming."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashdmd_cli.core.losses import ema_update_
from flashdmd_cli.core.weights import read_pickle

N = TypeVar("N", bound=nn.Module)

ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention kernels on a GPU. On a CPU it is the plain one: with only 64 tokens, the flash kernel would take a third of
a whole step."""

LossFn = Callable[[torch.Generator], dict[str, Tensor]]
"""Samples a batch with the generator and returns named losses; `loss` is minimised, others are logged."""


class Average(Generic[N]):
    """An exponential moving average of a network's parameters and buffers.

    The decay increases with the number of updates, so that initial weights are forgotten quickly.
    """

    def __init__(self, model: N, decay: float) -> None:
        self.net = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        pairs = list(zip(_tensors(self.net), _tensors(model), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]  # counters of batch normalisation

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the network's tensors after `step` earlier updates; waits for nothing on an accelerator."""
        old, new = zip(*self._averaged, strict=True)
        ema_update_(old, new, min(self.decay, (1 + step) / (10 + step)) if step else 0.0)
        for target, source in self._copied:
            target.copy_(source)


def _tensors(net: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*net.parameters(), *net.buffers())]


def train(
    name: str,
    model: N,
    loss_fn: LossFn,
    folder: Path,
    steps: int | None,
    lr: float,
    seed: int = 0,
    ema_decay: float = 0.999,
    warm_up: int = 200,
    seconds: float | None = None,
    before: Callable[[int], None] | None = None,
    save_seconds: float = 120.0,
    log_every: int = 50,
    say: Callable[[str], None] = print,
) -> N:
    """Train `model` for `steps` or for `seconds`, whichever is over first, and return it with averaged weights.

    Writes the state to `folder/name.ckpt` and metrics to `folder/name.jsonl`; a second call resumes, with the seconds
    of the first counted. `before(step)` is called before each step. The generator of each step, on the network's
    device, is seeded by (seed, step), so a resumed build has the same batches as an uninterrupted one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{name}.ckpt", folder / f"{name}.jsonl"
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
    )
    average = Average(model, ema_decay)
    start, spent = 0, 0.0
    if checkpoint.exists():
        state = read_pickle(checkpoint, device)
        model.load_state_dict(state["model"])
        average.net.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start, spent = state["step"], state.get("seconds", 0.0)
    began = saved = time.monotonic()

    def elapsed() -> float:
        return spent + time.monotonic() - began

    def share(step: int) -> float:
        """The part of the training that is over, on [0, 1]."""
        return max(0.0 if steps is None else step / steps, 0.0 if seconds is None else elapsed() / seconds)

    def save(step: int) -> None:
        temporary = checkpoint.with_suffix(".tmp")
        state = {
            "step": step,
            "seconds": elapsed(),
            "model": model.state_dict(),
            "average": average.net.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(state, temporary)
        temporary.rename(checkpoint)

    model.train()
    step, norm = start, torch.zeros(())
    while (over := share(step)) < 1:
        rate = lr * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * over)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if before is not None:
            before(step)
        with sdpa_kernel(ATTENTION if device.type == "cuda" else SDPBackend.MATH):
            losses = loss_fn(torch.Generator(device).manual_seed(seed * 1_000_003 + step))
            losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(step)
        step += 1
        logs, saves = (step - 1) % log_every == 0, time.monotonic() - saved > save_seconds
        # Reading a value makes an accelerator wait, and weights that are not finite stay so: no check at other steps.
        if (logs or saves) and not torch.isfinite(norm):
            raise FloatingPointError(f"{name}: gradient is not finite at step {step - 1}")
        if logs:
            metrics = {key: round(value.item(), 5) for key, value in losses.items()}
            rate_per_s = (step - start) / (time.monotonic() - began)
            row = {"step": step - 1, **metrics, "steps_per_s": round(rate_per_s, 3)}
            with log.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            left = [] if steps is None else [(steps - step) / rate_per_s]
            left += [] if seconds is None else [max(0.0, seconds - elapsed())]
            say(f"{name} {row} eta {min(left) / 60:.1f} min")
        if saves:
            save(step)
            saved = time.monotonic()
    if not torch.isfinite(norm):
        raise FloatingPointError(f"{name}: gradient is not finite at step {step - 1}")
    save(step)
    return average.net.eval()
