"""The protocols of denoising networks (`Denoiser`) and of the family functions that run them (`Calls`)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from flashdmd_cli.core.schedules import Prediction, Schedule
from flashdmd_cli.families.conditioning import Conditioning


class Denoiser(Protocol):
    """The denoising network of one role: teacher, student, fake score, reference or average.

    Shapes: `x_t` (B, ...), `t` (B,) float, `cond` with B rows.
    """

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that belong to this role, in a fixed order: those of a network, or of one adapter."""

    def output(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The network's output (B, ...), float32: noise, velocity or x0, depending on `Family.prediction`."""

    def x0(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """Predicted clean sample (B, ...), float32."""

    def guided_x0(self, x_t: Tensor, t: Tensor, cond: Conditioning, guidance: float | Tensor) -> Tensor:
        """x0 with classifier-free guidance `u + w (c - u)` on the network's outputs; `w = 1` means no guidance.

        `w` is one number, or a tensor (B,) with one for each sample.
        """

    def features(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        """Intermediate feature maps (B, C, h, w), float32 or lower precision, for a latent discriminator."""

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of this role by name, as they are saved in a state."""


class Calls(Protocol):
    """The part of a family that runs a denoising network; `Base` needs nothing else of it."""

    @property
    def schedule(self) -> Schedule: ...

    prediction: Prediction
    adapter_targets: tuple[str, ...]
    """Names of the layers that get low-rank adapters."""
    compiled_blocks: tuple[str, ...]
    """Class names of the modules that `model.compile` compiles."""

    def call(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The output of `net` (B, ...), float32."""

    def tap(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        """Intermediate feature maps of `net`; later layers are not computed."""

    def null(self, cond: Conditioning) -> Conditioning:
        """Conditioning for the unconditional branch of guidance: no prompt, everything else as in `cond`."""
