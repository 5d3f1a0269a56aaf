"""Denoising networks as the roles of a run see them, and how a family runs one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from flashdmd_cli.core.schedules import Prediction, Schedule
from flashdmd_cli.families.conditioning import Conditioning


class Denoiser(Protocol):
    """A denoising network as one role of a run sees it: teacher, student, fake score, reference, average.

    `x_t` is (B, ...), `t` (B,) float, `cond` has B rows.
    """

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weights that are this role's own, in a fixed order: all of a network, or one adapter's."""

    def output(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The network's own answer (B, ...), float32: noise, velocity or x0, as `Family.prediction` says."""

    def x0(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Clean sample (B, ...), float32, that the network sees in `x_t`."""

    def guided_x0(self, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float) -> Tensor:
        """x0 with classifier-free guidance `u + w (c - u)` on the network's own answers; `w = 1` is none."""

    def features(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        """Inner feature maps (B, C, h, w), float32 or lower, that a latent discriminator reads."""

    def weights(self) -> dict[str, Tensor]:
        """The role's own parameters and buffers by name, as a state keeps them."""


class Calls(Protocol):
    """The part of a family that runs a denoising network; all that `Base` needs."""

    @property
    def schedule(self) -> Schedule: ...

    prediction: Prediction
    adapter_targets: tuple[str, ...]
    """Names of the layers that low-rank adapters go on."""

    def call(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The answer of `net` (B, ...), float32."""

    def tap(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        """Inner feature maps of `net`; layers that they do not need are not run."""

    def null(self, cond: Conditioning) -> Conditioning:
        """What the unconditional side of guidance is told: no prompt, all else as in `cond`."""
