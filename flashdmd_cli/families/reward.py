"""Latent reward models: the interface for any family, and what the models of this package share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Outside = Literal["refuse", "clamp"]
"""Handling of timesteps outside the training range: raise an error, or use the nearest one in the range."""
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


@dataclass(frozen=True)
class RewardText:
    """Embeddings of `B` prompts; `null` is one row, the empty prompt."""

    context: Tensor  # (B, L, D) for cross-attention
    pooled: Tensor  # (B, P)
    null: RewardText | None = None

    def __len__(self) -> int:
        return len(self.context)

    def repeat(self, times: int) -> RewardText:
        """Each prompt repeated `times` times, as `repeat_interleave`."""
        return RewardText(
            self.context.repeat_interleave(times, 0), self.pooled.repeat_interleave(times, 0), self.null
        )  # fmt: skip


class RewardModel(Protocol):
    """Scores noisy latents at their own timestep. Higher is better; only scores for the same prompt are comparable."""

    @property
    def timesteps(self) -> tuple[float, float]:
        """Lowest and highest timestep that the model was trained on."""

    @property
    def is_half(self) -> bool:
        """Whether the weights are in half precision; then they run without autocast, others under the student's."""

    def encode(self, prompts: Sequence[str]) -> Any:
        """Embeddings of prompts (`RewardText`, or anything with its `len` and `repeat`)."""

    def score(self, latents: Tensor, t: Tensor, text: Any, outside: Outside = "refuse", guided: bool = True) -> Tensor:
        """Scores (B,), float32, of noisy latents (B, ...) at timesteps `t` (B,) for `text` of length B.

        `guided=False` turns off guidance by the empty prompt. Raises ValueError for a timestep outside the training
        range, unless `outside` is `clamp`.
        """

    def to(self, device: torch.device) -> Self:
        """Move the model to a device; returns itself."""


@dataclass(frozen=True)
class RewardDesign:
    """How a new reward model is built from a teacher; the names are those of recipe fields in `model`."""

    timesteps: tuple[int, int]
    """Lowest and highest timestep of its training."""
    layers: str
    """Trained layers: `all`, `attention` or `adapters`."""
    text_encoders: bool
    """Whether the text encoders are trained, too."""
    guidance: float | None
    lora_rank: int
    lora_alpha: float


class LatentReward(nn.Module):
    """A trainable reward model of LRM's kind (Zhang et al., arXiv 2502.01051), on the features of a denoiser.

    Features of several depths of the denoiser, averaged over the picture, are projected linearly; the score is the
    cosine similarity to the pooled embedding of the prompt, times a learned scale. Guidance by the empty prompt,
    `u + w (c - u)`, is applied to the deepest feature only. Subclasses define `timesteps`, `guidance`, `encode` and
    `features`, and call `add_head`.
    """

    visual_projection: nn.Linear
    logit_scale: nn.Parameter

    def add_head(self, inputs: int, width: int) -> None:
        """Add the projection from `inputs` features to embeddings of `width`, and the scale."""
        self.visual_projection = nn.Linear(inputs, width, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=0.02)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))

    @property
    def timesteps(self) -> tuple[float, float]:
        """Lowest and highest timestep that the model was trained on."""
        raise NotImplementedError

    @property
    def guidance(self) -> float | None:
        """Guidance of the deepest feature; None: no guidance."""
        raise NotImplementedError

    @property
    def is_half(self) -> bool:
        """Whether the weights are in half precision; then they run without autocast."""
        return False

    @property
    def device(self) -> torch.device:
        """The device of the projection."""
        return self.visual_projection.weight.device

    def encode(self, prompts: Sequence[str]) -> RewardText:
        """Embeddings of prompts, and of the empty prompt if the model has guidance."""
        raise NotImplementedError

    def features(self, latents: Tensor, t: Tensor, text: RewardText) -> tuple[Tensor, Tensor]:
        """Pooled features of all depths but the deepest, concatenated (B, F), and of the deepest (B, D)."""
        raise NotImplementedError

    def target(self, text: RewardText) -> Tensor:
        """The embedding (B, P) of the prompts that features are compared with."""
        return text.pooled

    def score(
        self, latents: Tensor, t: Tensor, text: RewardText, outside: Outside = "refuse", guided: bool = True
    ) -> Tensor:
        """Scores (B,), float32, of noisy latents (B, ...) at timesteps `t` (B,) for prompts `text` of length B.

        `guided=False` turns off guidance by the empty prompt. Raises ValueError for a timestep outside the training
        range, unless `outside` is `clamp`.
        """
        low, high = self.timesteps
        if outside == "clamp":
            t = t.clamp(low, high)
        elif (least := float(t.min())) < low or float(t.max()) > high:
            wrong = least if least < low else float(t.max())
            raise ValueError(f"timestep {wrong:g} lies outside {low:g} to {high:g}, where the reward model was trained")
        weight, null = self.guidance, text.null
        if guided and weight is not None and null is not None:
            num = len(text)
            both = RewardText(
                torch.cat([null.context.expand(num, -1, -1), text.context]),
                torch.cat([null.pooled.expand(num, -1), text.pooled]),
            )
            shallow, deepest = self.features(torch.cat([latents, latents]), t.repeat(2), both)
            unconditional, conditional = deepest.chunk(2)
            shallow, deepest = shallow[num:], unconditional + weight * (conditional - unconditional)
        else:
            shallow, deepest = self.features(latents, t, text)
        picture = self.visual_projection(torch.cat([shallow, deepest], dim=1))
        return self.logit_scale.exp() * F.cosine_similarity(picture.float(), self.target(text).float(), dim=1)
