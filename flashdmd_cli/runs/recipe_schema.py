"""The fields of a recipe: all settings of a run as immutable, validated configs.

The defaults are those for full fine-tuning of SDXL with 4 steps. The configs of stage 2 are in `align_schema`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from flashdmd_cli.runs.align_schema import Alignment, Bands, ProbeConfig
from flashdmd_cli.runs.tables import AdamW, Config, Count, Decay, Device, NonNegative, Positive, Precision, Saving

HIGH_NOISE_STEPS = 2
"""Number of high-noise grid steps: timesteps 999 and 749 of 4 steps, 999 and 874 of 8 (section 8 of the paper)."""


class Model(Config):
    """Which weights are trained."""

    form: Literal["full", "lora"] = "full"
    """All weights, or low-rank adapters on attention and feed-forward layers."""
    lora_rank: Count = 64
    """Rank of the adapters; used when `form` is lora."""
    lora_alpha: Positive = 64
    """Scale of the adapters; used when `form` is lora."""
    precision: Precision = "auto"
    """Number format of forward passes: fp32, bf16, or auto, which is bf16 if the device supports it natively. Master
    weights and losses are always fp32."""
    weights: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Number format in which the frozen denoiser is stored if `form` is lora; adapters are always fp32. auto is the
    format of forward passes. With bf16 weights and `precision: fp32`, each layer converts its weights when called. int8
    takes half the memory of bf16: the layers with adapters store whole numbers with a scale for each output; each call
    converts them, and losses change a little."""
    device: Device = "auto"
    """Device of the networks: cpu, cuda, mps, or auto, which is the accelerator if there is one."""
    checkpointing: bool = False
    """Activation checkpointing for student, fake score and the decoder: about a third more operations, far less memory,
    same results."""
    sharding: Literal["none", "fsdp"] = "none"
    """`fsdp`: with several processes and `form: full`, each stores an equal part of every denoiser, its gradients and
    moments (FSDP2), and gathers layers when they are computed; `none`: each process stores all. Same results."""
    compile: bool = False
    """Compile the blocks of the denoisers with `torch.compile`: a few minutes at the start, then fewer and larger
    operations. Losses change by rounding."""
    micro_conditioning: Literal["square", "data"] = "square"
    """Picture sizes in the conditioning during training: `square`: an uncropped square at the teacher's resolution, as
    in DMD2 and at inference; `data`: each picture's own `original_size` and `crop_top_left`. Data without pictures are
    always `square`."""
    vae: str | None = None
    """Autoencoder that replaces the teacher's: folder, `.safetensors` file or hub id."""
    teacher_config: str | None = None
    """Folder or hub id with configurations and tokenizers, for a teacher in a single file; null: SDXL's."""

    @model_validator(mode="after")
    def _sharded_in_full(self) -> Self:
        if self.sharding == "fsdp" and self.form == "lora":
            raise ValueError("sharding should be none where form is lora: adapters are small, and their base is shared")
        return self

    def storage(self, precision: str) -> str:
        """Number format in which the denoiser is stored, where forward passes are in `precision`."""
        if self.form == "full":
            return "fp32"
        return precision if self.weights == "auto" else self.weights


class StepGrid(Config):
    """The student's timesteps."""

    steps: Literal[1, 2, 4, 8] = 4
    """Number of student steps: 4 gives the timesteps 999, 749, 499, 249."""


class DistributionMatching(Config):
    """The distribution-matching loss."""

    steps: Literal["all_but_last", "all"] = "all_but_last"
    """Grid steps trained by this loss; in a grid of one step, that step is always trained."""
    renoise_range: tuple[int, int] = (20, 980)
    """Lowest and highest timestep at which teacher and fake score are evaluated, both included."""
    guidance: float | tuple[float, float] = 8.0
    """Teacher's guidance w in `u + w (c - u)`; two numbers, such as [2, 8]: drawn uniformly between them for each
    picture."""
    teacher_guidance: NonNegative | None = None
    """Guidance with which previews, `sample` and `eval` show the teacher; null: that of training, or the
    mean of its range."""
    weight: NonNegative = 1.0
    """Factor of this loss."""

    @model_validator(mode="before")
    @classmethod
    def _guidance(cls, values: Any) -> Any:
        """One message for both forms."""
        guidance = values.get("guidance", 0.0) if isinstance(values, dict) else 0.0
        numbers = list(guidance) if isinstance(guidance, list | tuple) else [guidance, guidance]
        is_number = all(isinstance(each, int | float) and not isinstance(each, bool) for each in numbers)
        if len(numbers) != 2 or not is_number or not 0 <= numbers[0] <= numbers[1] < math.inf:
            raise ValueError(
                f"guidance should be a number of at least 0, or two, the lower first, such as [2, 8], not {guidance}"
            )
        return values

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.renoise_range
        if not 0 <= low < high <= 999:
            raise ValueError(f"renoise_range should be two timesteps, 0 <= low < high <= 999, not {low}, {high}")
        return self

    @property
    def shown_guidance(self) -> float:
        """The guidance with which the teacher is shown."""
        if self.teacher_guidance is not None:
            return self.teacher_guidance
        return sum(self.guidance) / 2 if isinstance(self.guidance, tuple) else self.guidance


class Adversarial(Config):
    """The adversarial loss and its discriminator."""

    kind: Literal["pixel", "latent", "none"] = "pixel"
    """`pixel`: discriminator heads on a frozen SAM encoder, for decoded pictures; `latent`: heads on the fake score's
    middle block, for noisy latents; `none`: no adversarial loss."""
    steps: Literal["last", "all"] = "last"
    """Grid steps trained by this loss."""
    weight: NonNegative = 0.1
    """lambda_adv: factor of the student's adversarial loss."""
    fake_weight: NonNegative = 1e-2
    """Factor of the discriminator loss if `kind` is latent, where it also trains the fake score."""
    loss: Literal["hinge", "softplus"] = "hinge"
    """Form of the adversarial loss."""
    input: Literal["last_step", "renoise"] = "last_step"
    """Input of the student at the last step: the noisy state as at inference, or a final x0 noised again (Eq. 8-9)."""
    decode: Literal["full", "crop"] = "crop"
    """Decode whole latents, or a random crop with a margin."""
    crop_px: Count = 512
    """Side of the crop in pixels, a multiple of 8 and at most the teacher's resolution; used when `decode` is crop."""
    crop_margin_latents: Annotated[int, Field(ge=0)] = 4
    """Margin in latent pixels that is decoded around the crop and cut away; used when `decode` is crop."""
    sam: str = "vit_b"
    """SAM encoder if `kind` is pixel: `embedded`, `vit_b`, `vit_l`, `vit_h`, or a path to weights."""
    real: Literal["pixels", "vae_roundtrip"] = "pixels"
    """Real pictures unchanged, or encoded and decoded, so that VAE artefacts do not distinguish real and fake."""
    soft_weights: bool = False
    """Multiply the adversarial losses of student and discriminator by sqrt(alpha_bar) of the step's timestep
    (SenseFlow)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "latent" and self.steps == "last":
            raise ValueError("steps should be all where kind is latent: latent heads are trained at every noise level")
        if self.crop_px % 8:
            raise ValueError(f"crop_px should be a multiple of 8, not {self.crop_px}")
        return self


class FakeScore(Config):
    """The fake score network."""

    ttur: Count | None = None
    """Distillation iterations per student update; fake score and discriminator are updated in each of them. Null: 1,
    or in an alignment `align.rl_ratio`, so that they are updated in every iteration."""
    ema: Decay | None = 0.97
    """lambda_ema of Eq. 11, fake <- lambda fake + (1 - lambda) student after a student update; null: never."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of the times at which the fake score is trained, before the shift of a flow schedule: `uniform`, as
    in SDXL's training, or `logit_normal` (0, 1), as in SD3's, which favours medium noise."""


class Optimizer(AdamW):
    """AdamW optimizers of student, fake score and discriminator."""

    lr_student: Positive = 1e-6
    """Learning rate of the student."""
    lr_fake: Positive = 1e-6
    """Learning rate of the fake score."""
    lr_discriminator: Positive = 1e-5
    """Learning rate of the discriminator's heads."""
    warmup_images: Annotated[int, Field(ge=0)] = 6400
    """Length of the linear learning-rate warm-up in pictures, for any batch and TTUR."""

    def warmup_factor(self, images: int) -> float:
        """Learning-rate factor of an update after `images` pictures, its own batch included."""
        return min(1.0, images / self.warmup_images) if self.warmup_images else 1.0


class Train(Saving):
    """Sizes and intervals."""

    batch: Count = 64
    """Pictures per iteration, summed over all processes."""
    micro_batch: Count = 1
    """Pictures per forward pass; gradients are accumulated over `batch / micro_batch` passes."""
    iterations: Count = 1000
    """Length of the run. Stage 1: a fake-score update per iteration and a student update every `fake.ttur` iterations;
    stage 2: a preference step per iteration."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of all random numbers."""
    average_images: Count | None = None
    """Time constant in pictures of an exponential moving average (EMA) of the student, for any batch and TTUR: after
    that many pictures, a student's weight has fallen to 1/e. The average is previewed and exported; null: no EMA."""
    log_every: Count = 1
    """Iterations between rows of metrics."""
    save_every: Count = 100
    """Iterations between saved states."""
    preview_every: Count | None = 100
    """Iterations between preview pictures; null: none are drawn, which take minutes at full size on a CPU."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(
                f"batch should be a multiple of micro_batch, but {self.batch} is not of {self.micro_batch}"
            )
        return self

    @property
    def average_decay(self) -> float | None:
        """EMA decay per iteration; None without EMA."""
        return None if self.average_images is None else math.exp(-self.batch / self.average_images)


class Recipe(Config):
    """One run of stage 1 or 2."""

    name: str = "unnamed"
    """Name in logs and manifests."""
    family: str = "sdxl"
    """Model family."""
    teacher: str = "sdxl"
    """`sdxl` (stabilityai/stable-diffusion-xl-base-1.0), `sd3` (stabilityai/stable-diffusion-3-medium-diffusers),
    `shapes-sdxl` or `shapes-sd3` (embedded), a hub id, a pipeline folder or a checkpoint file."""
    model: Model = Model()
    grid: StepGrid = StepGrid()
    dm: DistributionMatching = DistributionMatching()
    gan: Adversarial = Adversarial()
    fake: FakeScore = FakeScore()
    optim: Optimizer = Optimizer()
    train: Train = Train()
    align: Alignment | None = None
    """Stage 2: preference learning, regularised by the other losses of this recipe; null: stage 1 only."""
    probe: ProbeConfig = ProbeConfig()
    bands: Bands = Bands()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.align is not None and self.grid.steps == 1:
            raise ValueError("grid.steps should be 2, 4 or 8 for an alignment: a single step gives no candidates")
        if self.align is None and self.probe.every is not None:
            raise ValueError("probe.every is for an alignment: distillation has tripwires, but no probe")
        if self.probe.stop_on_collapse and self.probe.every is None:
            raise ValueError("probe.stop_on_collapse needs a probe: set probe.every")
        return self

    @property
    def ttur(self) -> int:
        """Distillation iterations per student update (two time-scale update rule)."""
        ratio = None if self.align is None else self.align.rl_ratio
        return self.fake.ttur or ratio or 1

    @property
    def dm_step_indices(self) -> tuple[int, ...]:
        """Indices of the grid steps trained by distribution matching."""
        steps = self.grid.steps
        return tuple(range(steps)) if self.dm.steps == "all" or steps == 1 else tuple(range(steps - 1))

    @property
    def gan_step_indices(self) -> tuple[int, ...]:
        """Indices of the grid steps trained by the adversarial loss; empty without one."""
        if self.gan.kind == "none":
            return ()
        return tuple(range(self.grid.steps)) if self.gan.steps == "all" else (self.grid.steps - 1,)

    @property
    def preference_step_indices(self) -> tuple[int, ...]:
        """Indices of the grid steps trained by preference; the last step is deterministic and has no candidates."""
        stochastic = self.grid.steps - 1
        every = self.align is not None and self.align.steps == "all_noise"
        return tuple(range(stochastic if every else min(HIGH_NOISE_STEPS, stochastic)))
