"""Recipe fields of stage 2: preference learning, the collapse probe, and the bands of the tripwires."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flashdmd_cli.runs.tables import Config, Count, Positive, Share


class Alignment(Config):
    """Preference learning at high noise (Eq. 12-13)."""

    rl_ratio: Count | None = 5
    """Preference steps per student update by distillation; null: preference steps only (post-training)."""
    reward: str = "lrm_sdxl"
    """Latent reward model: `embedded`, `lrm_sdxl` (downloaded), a hub id, or a folder."""
    steps: Literal["high_noise", "all_noise"] = "high_noise"
    """Grid steps trained by preference: the first two, or all but the last, which is deterministic."""
    pairs: Literal["noisy", "clean"] = "noisy"
    """`noisy`: candidates of one step, scored at their own noise level; `clean`: whole trajectories, ranked by their
    final picture, with the ranking applied to all their steps (PSO)."""
    candidates: Annotated[int, Field(ge=2)] = 4
    """k: number of candidates from one noisy state, or of trajectories from one noise; best and worst form a pair."""
    threshold: tuple[Share, Share] = (0.45, 0.60)
    """Minimum difference of the softmax over the scores of winner and loser for a pair to be used, at zero and at full
    noise; in between it increases linearly with the candidates' noise level sigma."""
    beta: Positive = 500.0
    """Strength of the preference in `-log sigmoid(beta H / d)`."""
    reward_timestep: Literal["next", "current"] = "next"
    """Timestep for the reward model: that of the candidates, or that of the step before them (as in LPO's code)."""
    reward_outside: Literal["refuse", "clamp"] = "refuse"
    """Timesteps outside the reward model's training range: an error, or use the nearest timestep in the range."""
    reward_guidance: bool = True
    """Guide the reward model's deepest feature by the empty prompt, if the model was trained with guidance."""
    lr: Positive = 1e-6
    """Learning rate of the preference steps; used when `optimizer` is own."""
    optimizer: Literal["own", "shared"] = "own"
    """`own`: a separate optimizer for preference steps, so that its moments do not mix with those of distillation;
    `shared`: one optimizer for both, which saves two copies of the trained weights."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.threshold
        if low > high:
            raise ValueError(f"threshold should not fall with noise, but {low} > {high}")
        return self


class ProbeConfig(Config):
    """Collapse probe: pictures of fixed prompts and seeds, compared with those of the student before training."""

    every: Count | None = None
    """Iterations between probes; null: no probe."""
    num_prompts: Annotated[int, Field(ge=2)] = 16
    """Number of prompts, taken from the start of the data."""
    num_seeds: Annotated[int, Field(ge=2)] = 4
    """Pictures per prompt."""
    judge: Literal["auto", "none", "pickscore", "hpsv2"] = "auto"
    """Second judge, which training does not use. `pickscore`, `hpsv2`: this scorer of `flashdmd eval`, downloaded if
    necessary. `auto`: on the embedded world its inspector, else HPSv2 or PickScore, the first whose weights are on this
    machine, else none. A resumed run keeps its judge."""
    streak: Count = 2
    """Consecutive probes in which a metric has to be outside its band to count as a collapse."""
    excuse_when_reward_falls: bool = True
    """Ignore picture statistics while the training reward is below its initial value by its whole 95% interval;
    diversity and the second judge's score always count."""
    stop_on_collapse: bool = False
    """End the run on a collapse, with the state saved and exit code 4."""


Band = Annotated[float, Field(gt=0)] | None
ONLY_A_FALL_COUNTS = ("diversity", "held_out", "pickscore", "hpsv2")
"""Metrics of the probe whose increase is never a collapse."""


class Bands(Config):
    """Thresholds of the tripwires. Metrics of the probe: allowed relative change since before training, exceeded if
    the whole 95% interval exceeds it; null: not checked."""

    brightness: Band = 0.10
    """Mean luminance."""
    saturation: Band = 0.25
    """Mean saturation (HSV)."""
    contrast: Band = 0.25
    """Standard deviation of luminance."""
    colourfulness: Band = 0.25
    """Hasler and Suesstrunk's measure."""
    clipped: Band = None
    """Fraction of clipped values (0 or 255); near zero before training, so its relative change is not reliable."""
    laplacian: Band = 0.50
    """Variance of the Laplacian (sharpness)."""
    high_frequency: Band = 0.50
    """Energy of high spatial frequencies."""
    entropy: Band = 0.15
    """Entropy of luminance."""
    diversity: Band = 0.10
    """Distance between pictures of the same prompt; only a decrease counts."""
    held_out: Band = 0.10
    """Score of a judge other than the reward model; only a decrease counts. For the embedded teacher, this is the
    inspector, which labelled some of the reward model's pairs, so the errors of both are correlated."""
    pickscore: Band = 0.01
    """Mean PickScore, a cosine; only a decrease counts. Of two pictures that differ by 1% of a typical score (0.22), it
    prefers the better one in 55 of 100 cases."""
    hpsv2: Band = 0.01
    """Mean HPSv2, a cosine; only a decrease counts. Of two pictures that differ by 1% of a typical score (0.28), it
    prefers the better one in 57 of 100 cases."""
    brightness_drift: Positive = 0.10
    """Difference in brightness of student and real pictures at the discriminator, on [0, 1], smoothed."""
    d_win_loss: Positive = 0.135
    """Discriminator loss below which it separates real and fake perfectly."""
    d_win_streak: Count = 3
    """Consecutive iterations at or below `d_win_loss` before a warning."""
    dm_gradient: Positive = 5.0
    """Ratio of the norm of the distribution-matching gradient at the student's output to its running mean."""
