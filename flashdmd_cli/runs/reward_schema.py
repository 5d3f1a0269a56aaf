"""Recipe fields for training a latent reward model. The defaults are those of LRM-SDXL's training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flashdmd_cli.runs.tables import AdamW, Config, Count, Device, NonNegative, Positive, Precision, Saving, Share

Timestep = Annotated[int, Field(ge=0, le=999)]


class RewardModel(Config):
    """Trained layers, guidance and number format."""

    layers: Literal["all", "attention", "adapters"] = "all"
    """Trained layers: the whole encoder half of the denoiser, or only its transformer blocks (SDXL); or adapters on
    the first half of the denoiser's blocks (SD3). Layers that are not trained are not saved, but loaded from the
    teacher."""
    lora_rank: Count = 64
    """Rank of the adapters; used when `layers` is adapters."""
    lora_alpha: Positive = 64
    """Scale of the adapters; used when `layers` is adapters."""
    text_encoders: bool = True
    """Also train copies of the text encoders; otherwise the teacher's are used."""
    guidance: NonNegative | None = 7.5
    """Guidance w of the deepest feature, `u + w (c - u)` with the empty prompt; null: no guidance, at half the cost."""
    precision: Precision = "auto"
    """Number format of forward passes: fp32, bf16, or auto, which is bf16 if the device supports it natively. Weights
    and losses are always fp32."""
    device: Device = "auto"
    """Device of the networks: cpu, cuda, mps, or auto, which is the accelerator if there is one."""


class RewardPairs(Config):
    """Selection of training pairs, and their noise levels."""

    keep: tuple[str, ...] = ()
    """Conditions on columns, such as `aesthetic_gap>-0.5`; pairs with a winner are used if they meet all of them."""
    keep_ties: tuple[str, ...] = ()
    """Conditions on columns; ties are used if they meet all of them."""
    held_out: Share = 0.05
    """Fraction of the prompts whose pairs are held out for validation."""
    first_timestep: Timestep = 1
    """Lowest training timestep."""
    last_timestep: Timestep = 951
    """Highest training timestep."""
    spacing: Count = 50
    """Distance between training timesteps, sampled uniformly; both pictures of a pair have the same timestep, but
    different noise."""
    per_prompt: bool = True
    """Weight each pair by one over the number of pairs with the same prompt."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first_timestep > self.last_timestep:
            raise ValueError(f"first_timestep should not exceed {self.last_timestep}, but is {self.first_timestep}")
        return self

    @property
    def timesteps(self) -> tuple[int, ...]:
        """All training timesteps."""
        return tuple(range(self.first_timestep, self.last_timestep + 1, self.spacing))


class RewardOptimizer(AdamW):
    """AdamW of the reward model."""

    lr: Positive = 1e-5
    """Learning rate."""
    warmup: Annotated[int, Field(ge=0)] = 1000
    """Length of the linear learning-rate warm-up in updates."""
    decay: bool = True
    """Decrease the learning rate linearly to zero from the end of the warm-up to the end of the run."""


class RewardTrain(Saving):
    """Sizes and intervals."""

    batch: Count = 32
    """Pairs per iteration."""
    micro_batch: Count = 4
    """Pairs per forward pass."""
    iterations: Count = 8000
    """Length of the run."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all random numbers."""
    log_every: Count = 10
    """Iterations between rows of metrics."""
    save_every: Count = 500
    """Iterations between saved states, and between validations on held-out pairs."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch should be a multiple of micro_batch, but {self.batch} is not of {self.micro_batch}"
            )
        return self


class RewardRecipe(Config):
    """One training of a reward model."""

    name: str = "unnamed"
    """Name in logs and manifests."""
    teacher: str = "sdxl"
    """Model whose features are used: `sdxl`, `sd3`, `shapes-sdxl` or `shapes-sd3` (embedded), or a pipeline folder."""
    model: RewardModel = RewardModel()
    pairs: RewardPairs = RewardPairs()
    optim: RewardOptimizer = RewardOptimizer()
    train: RewardTrain = RewardTrain()

    def rate_factor(self, step: int) -> float:
        """Learning-rate factor of update `step`, counted from 0: linear warm-up, then linear decay to 0."""
        warmup, total = self.optim.warmup, self.train.iterations
        if step < warmup:
            return (step + 1) / warmup
        return (total - step) / (total - warmup) if self.optim.decay else 1.0
