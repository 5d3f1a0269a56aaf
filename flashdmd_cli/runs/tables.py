"""Base class and field types of recipe configs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Precision = Literal["auto", "fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


class Config(BaseModel):
    """Base of all recipe configs: immutable, and unknown fields are an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class Saving(Config):
    """Saved states of a run."""

    keep_states: Count = 2
    """Number of states that are kept, the newest ones."""
    async_save: bool = False
    """Write states in a thread while training goes on; takes main memory for one more state."""


class AdamW(Config):
    """Settings that all optimizers of a run share."""

    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moments."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay."""
    clip: Positive = 1.0
    """Maximum gradient norm of each network; larger gradients are scaled down."""
