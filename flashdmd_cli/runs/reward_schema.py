"""The fields of a recipe for a latent reward model. The defaults are those with which LRM-SDXL was trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flashdmd_cli.runs.tables import AdamW, Count, Device, NonNegative, Positive, Precision, Share, Table

Timestep = Annotated[int, Field(ge=0, le=999)]


class RewardModel(Table):
    """Which part of the teacher's copy is trained, and how its answer is read."""

    layers: Literal["all", "attention"] = "all"
    """The whole encoder half of the denoiser, or its transformer blocks; the rest stays the teacher's and is not saved
    again."""
    text_encoders: bool = True
    """Train copies of the text encoders too; otherwise the teacher's own are used."""
    guidance: NonNegative | None = 7.5
    """Guidance w of the deepest feature, `u + w (c - u)` with the empty prompt; null: none, at half the cost."""
    precision: Precision = "auto"
    """Number format of forward passes, fp32, bf16, or auto: bf16 where the device has it natively. Weights and losses
    are always fp32."""
    device: Device = "auto"
    """What the networks run on, cpu, cuda, mps, or auto: the accelerator if there is one."""


class RewardPairs(Table):
    """Which pairs are learned from, and at which noise."""

    keep: tuple[str, ...] = ()
    """Conditions on columns, `aesthetic_gap>-0.5`, all of which a pair with a winner must meet."""
    keep_ties: tuple[str, ...] = ()
    """Conditions on columns that a tie must meet."""
    held_out: Share = 0.05
    """Share of the prompts, with all their pairs, that are kept for the report."""
    first_timestep: Timestep = 1
    """Lowest timestep of noise."""
    last_timestep: Timestep = 951
    """Highest timestep of noise."""
    spacing: Count = 50
    """Distance of the timesteps, drawn uniformly; one for both pictures of a pair, with noise of its own each."""
    per_prompt: bool = True
    """Let a pair count by one over the number of pairs of its prompt."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first_timestep > self.last_timestep:
            raise ValueError(f"first_timestep should not exceed {self.last_timestep}, but is {self.first_timestep}")
        return self

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The timesteps that noise is drawn at."""
        return tuple(range(self.first_timestep, self.last_timestep + 1, self.spacing))


class RewardOptimizer(AdamW):
    """AdamW of the reward model."""

    lr: Positive = 1e-5
    """Learning rate."""
    warmup: Annotated[int, Field(ge=0)] = 1000
    """Updates in which the learning rate rises linearly from zero."""
    decay: bool = True
    """Let the learning rate fall linearly to zero from the end of the warm-up to that of the run."""


class RewardTrain(Table):
    """Sizes and intervals."""

    batch: Count = 32
    """Pairs per iteration."""
    micro_batch: Count = 4
    """Pairs per forward pass."""
    iterations: Count = 8000
    """Length of the run."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything that is drawn."""
    log_every: Count = 10
    """Iterations between rows of figures."""
    save_every: Count = 500
    """Iterations between saved states and measurements on held-out pairs."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch should be a multiple of micro_batch, but {self.batch} is not of {self.micro_batch}"
            )
        return self


class RewardRecipe(Table):
    """One training of a reward model."""

    name: str = "unnamed"
    """Name shown in logs and manifests."""
    teacher: str = "sdxl"
    """What its trunk starts from: `sdxl`, `shapes-sdxl` (embedded), or a pipeline folder."""
    model: RewardModel = RewardModel()
    pairs: RewardPairs = RewardPairs()
    optim: RewardOptimizer = RewardOptimizer()
    train: RewardTrain = RewardTrain()

    def rate_factor(self, step: int) -> float:
        """Factor of the learning rate for update `step`, counted from 0: linear warm-up, then linear decay to 0."""
        warmup, total = self.optim.warmup, self.train.iterations
        if step < warmup:
            return (step + 1) / warmup
        return (total - step) / (total - warmup) if self.optim.decay else 1.0
