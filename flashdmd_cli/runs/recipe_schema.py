"""The fields of a recipe: every choice of a run in frozen, checked tables.

The defaults are those of full fine-tuning of SDXL in 4 steps. The tables of stage 2 are in `align_schema`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flashdmd_cli.runs.align_schema import Alignment, Bands, ProbeTable
from flashdmd_cli.runs.tables import AdamW, Count, Decay, Device, NonNegative, Positive, Precision, Table

HIGH_NOISE_STEPS = 2
"""How many of the first grid steps count as high noise: 999 and 749 of 4, 999 and 874 of 8 (section 8 of the paper)."""


class Model(Table):
    """Which weights are trained."""

    form: Literal["full", "lora"] = "full"
    """All weights, or low-rank adapters on attention and feed-forward layers."""
    lora_rank: Count = 64
    """Rank of the adapters; used when `form` is lora."""
    lora_alpha: Positive = 64
    """Scale of the adapters; used when `form` is lora."""
    precision: Precision = "auto"
    """Number format of the networks' forward passes, fp32, bf16, or auto: bf16 where the device has it natively. Master
    weights and losses are always fp32."""
    device: Device = "auto"
    """What the networks run on, cpu, cuda, mps, or auto: the accelerator if there is one."""
    checkpointing: bool = False
    """Recompute activations of student and fake score in the backward pass: about a third more time, far less memory,
    the same numbers."""
    micro_conditioning: Literal["square", "data"] = "square"
    """Sizes that the networks are told in training: a whole square at the teacher's resolution, as in DMD2 and when the
    student draws, or each picture's own `original_size` and `crop_top_left`. Prompts alone are square."""
    vae: str | None = None
    """Autoencoder instead of the teacher's own: folder, `.safetensors` file or hub id."""
    teacher_config: str | None = None
    """Folder or hub id with configurations and tokenizers for a teacher that is one file; null: SDXL's own."""


class StepGrid(Table):
    """The student's timesteps."""

    steps: Literal[1, 2, 4, 8] = 4
    """Number of student steps: 4 gives the timesteps 999, 749, 499, 249."""


class DistributionMatching(Table):
    """The distribution-matching loss."""

    steps: Literal["all_but_last", "all"] = "all_but_last"
    """Grid steps that it trains; a grid of one step has only its last, which is then trained."""
    renoise_range: tuple[int, int] = (20, 980)
    """Lowest and highest timestep at which teacher and fake score are compared, both included."""
    guidance: NonNegative = 8.0
    """Teacher's guidance w in `u + w (c - u)`."""
    weight: NonNegative = 1.0
    """Factor of this loss."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.renoise_range
        if not 0 <= low < high <= 999:
            raise ValueError(f"renoise_range should be two timesteps, 0 <= low < high <= 999, not {low}, {high}")
        return self


class Adversarial(Table):
    """The adversarial loss and its discriminator."""

    kind: Literal["pixel", "latent", "none"] = "pixel"
    """`pixel`: heads on a frozen SAM encoder, on decoded pictures; `latent`: heads on the fake score's middle block, on
    diffused latents; `none`: no adversarial loss."""
    steps: Literal["last", "all"] = "last"
    """Grid steps that it trains."""
    weight: NonNegative = 0.1
    """lambda_adv: factor of the student's adversarial loss."""
    fake_weight: NonNegative = 1e-2
    """Factor of the discriminator's loss where it trains the fake score too (`latent`)."""
    loss: Literal["hinge", "softplus"] = "hinge"
    """Form of the adversarial loss."""
    input: Literal["last_step", "renoise"] = "last_step"
    """What the student sees: the noisy state as at inference, or a finished x0 noised again to this step (Eq. 8-9)."""
    decode: Literal["full", "crop"] = "crop"
    """Decode whole latents, or a random crop of them with a margin."""
    crop_px: Count = 512
    """Side of the crop in pixels, a multiple of 8 and at most the teacher's resolution; used when `decode` is crop."""
    crop_margin_latents: Annotated[int, Field(ge=0)] = 4
    """Latent pixels decoded around the crop and cut away; used when `decode` is crop."""
    sam: str = "vit_b"
    """SAM encoder of the pixel kind: `embedded`, or `vit_b`, `vit_l`, `vit_h`, or a path to weights."""
    real: Literal["pixels", "vae_roundtrip"] = "pixels"
    """Real pictures as they are, or encoded and decoded so that the VAE's traces tell nothing."""
    soft_weights: bool = False
    """Multiply every adversarial term of a step, the student's and the discriminator's, by sqrt(alpha_bar) of its
    timestep (SenseFlow)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "latent" and self.steps == "last":
            raise ValueError("steps should be all where kind is latent: those heads see every noise level")
        if self.crop_px % 8:
            raise ValueError(f"crop_px should be a multiple of 8, not {self.crop_px}")
        return self


class FakeScore(Table):
    """The fake score network."""

    ttur: Count | None = None
    """Iterations of stage 1 per student update; fake score and discriminator are updated in every one of them. Null: 1,
    and in an alignment its `rl_ratio`, so that they learn at every preference step."""
    ema: Decay | None = 0.97
    """lambda_ema of Eq. 11, fake <- lambda fake + (1 - lambda) student after a student update; null: never."""


class Optimizer(AdamW):
    """AdamW for each of the three roles."""

    lr_student: Positive = 1e-6
    """Learning rate of the student."""
    lr_fake: Positive = 1e-6
    """Learning rate of the fake score."""
    lr_discriminator: Positive = 1e-5
    """Learning rate of the discriminator's heads."""
    warmup_images: Annotated[int, Field(ge=0)] = 6400
    """Pictures during which every learning rate rises linearly from zero, whatever the batch and the TTUR."""

    def warmup_factor(self, images: int) -> float:
        """Factor of every learning rate for an update that ends `images` pictures into the run."""
        return min(1.0, images / self.warmup_images) if self.warmup_images else 1.0


class Train(Table):
    """Sizes and intervals."""

    batch: Count = 64
    """Pictures per iteration, over all processes."""
    micro_batch: Count = 1
    """Pictures per forward pass; gradients are accumulated over `batch / micro_batch` of them."""
    iterations: Count = 1000
    """Length of the run. Stage 1: one fake-score update each, and one student update in `fake.ttur`; stage 2: one
    preference step each."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything that is drawn."""
    average_images: Count | None = None
    """Ship an exponential average of the student instead of the last one: its time constant in pictures, whatever the
    batch and the TTUR (a student of so many pictures ago counts 1/e of the present one); null: ship the last one."""
    log_every: Count = 1
    """Iterations between rows of figures."""
    save_every: Count = 100
    """Iterations between saved states."""
    preview_every: Count = 100
    """Iterations between preview pictures."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch should be a multiple of micro_batch, but {self.batch} is not of {self.micro_batch}"
            )
        return self

    @property
    def average_decay(self) -> float | None:
        """What one iteration leaves of the average; null without one."""
        return None if self.average_images is None else math.exp(-self.batch / self.average_images)

    @property
    def accumulation(self) -> int:
        """Forward passes per iteration."""
        return self.batch // self.micro_batch


class Recipe(Table):
    """One run of stage 1 or 2."""

    name: str = "unnamed"
    """Name shown in logs and manifests."""
    family: str = "sdxl"
    """Kind of model."""
    teacher: str = "sdxl"
    """`sdxl` (stabilityai/stable-diffusion-xl-base-1.0), `shapes-sdxl` (embedded), a hub id, a pipeline folder or a
    checkpoint file."""
    model: Model = Model()
    grid: StepGrid = StepGrid()
    dm: DistributionMatching = DistributionMatching()
    gan: Adversarial = Adversarial()
    fake: FakeScore = FakeScore()
    optim: Optimizer = Optimizer()
    train: Train = Train()
    align: Alignment | None = None
    """Stage 2: preference learning with this recipe's other losses as the regulariser; null: stage 1 alone."""
    probe: ProbeTable = ProbeTable()
    bands: Bands = Bands()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.align is not None and self.grid.steps == 1:
            raise ValueError("grid.steps should be 2, 4 or 8 for an alignment: a single step draws nothing to prefer")
        if self.align is None and self.probe.every is not None:
            raise ValueError("probe.every is for an alignment: distillation alone has tripwires, but no probe")
        if self.probe.stop_on_collapse and self.probe.every is None:
            raise ValueError("probe.stop_on_collapse needs a probe: set probe.every")
        return self

    @property
    def ttur(self) -> int:
        """Iterations of stage 1 per student update."""
        ratio = None if self.align is None else self.align.rl_ratio
        return self.fake.ttur or ratio or 1

    @property
    def dm_step_indices(self) -> tuple[int, ...]:
        """Indices into the grid of the steps that distribution matching trains."""
        steps = self.grid.steps
        return tuple(range(steps)) if self.dm.steps == "all" or steps == 1 else tuple(range(steps - 1))

    @property
    def gan_step_indices(self) -> tuple[int, ...]:
        """Indices into the grid of the steps that the adversarial loss trains; empty without one."""
        if self.gan.kind == "none":
            return ()
        return tuple(range(self.grid.steps)) if self.gan.steps == "all" else (self.grid.steps - 1,)

    @property
    def preference_step_indices(self) -> tuple[int, ...]:
        """Indices into the grid of the steps whose candidates are compared; the last step draws nothing."""
        stochastic = self.grid.steps - 1
        every = self.align is not None and self.align.steps == "all_noise"
        return tuple(range(stochastic if every else min(HIGH_NOISE_STEPS, stochastic)))
