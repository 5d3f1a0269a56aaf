"""The training loop of all builders: cosine learning-rate decay, averaged weights, checkpoints, resuming."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from flashdmd_cli.core.losses import ema_update_

N = TypeVar("N", bound=nn.Module)

LossFn = Callable[[torch.Generator], dict[str, Tensor]]
"""Samples a batch with the generator and returns named losses; `loss` is minimised, others are logged."""


def _ema(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Exponential moving average whose decay increases with the number of updates, so that initial weights are
    forgotten quickly."""

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        count = float(num_averaged)
        if not averaged[0].is_floating_point():  # counters of batch normalisation
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)
            return
        ema_update_(averaged, current, min(decay, (1 + count) / (10 + count)))

    return update


def train(
    name: str,
    model: N,
    loss_fn: LossFn,
    folder: Path,
    steps: int,
    lr: float,
    seed: int = 0,
    ema_decay: float = 0.999,
    warm_up: int = 200,
    save_seconds: float = 120.0,
    log_every: int = 50,
    say: Callable[[str], None] = print,
) -> N:
    """Train `model` for `steps` and return the network with averaged weights.

    Writes the state to `folder/name.ckpt` and metrics to `folder/name.jsonl`; a second call resumes. The generator of
    each step is seeded by (seed, step), so a resumed build has the same batches as an uninterrupted one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{name}.ckpt", folder / f"{name}.jsonl"
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    average = AveragedModel(model, multi_avg_fn=_ema(ema_decay), use_buffers=True)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]

    def save(step: int) -> None:
        temporary = checkpoint.with_suffix(".tmp")
        state = {
            "step": step,
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(state, temporary)
        temporary.rename(checkpoint)

    model.train()
    began = saved = time.monotonic()
    for step in range(start, steps):
        rate = lr * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        # Plain attention: with only 64 tokens, the CPU's flash kernel would take a third of the whole step.
        with sdpa_kernel(SDPBackend.MATH):
            losses = loss_fn(torch.Generator().manual_seed(seed * 1_000_003 + step))
            losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"{name}: gradient is not finite at step {step}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(model)
        if step % log_every == 0:
            metrics = {key: round(value.item(), 5) for key, value in losses.items()}
            rate_per_s = (step + 1 - start) / (time.monotonic() - began)
            row = {"step": step, **metrics, "steps_per_s": round(rate_per_s, 3)}
            with log.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            say(f"{name} {row} eta {(steps - step) / rate_per_s / 60:.1f} min")
        if time.monotonic() - saved > save_seconds:
            save(step + 1)
            saved = time.monotonic()
    save(steps)
    return average.module.eval()  # type: ignore[return-value]
