"""The fields of a recipe that stage 2 adds: preference learning, the probe, and the bands of the tripwires."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flashdmd_cli.runs.tables import Count, Positive, Share, Table


class Alignment(Table):
    """Preference learning at high noise (Eq. 12-13)."""

    rl_ratio: Count | None = 5
    """Preference steps for each student update of stage 1; null: preference steps alone (post-training)."""
    reward: str = "lrm_sdxl"
    """Latent reward model: `embedded`, `lrm_sdxl` (downloaded), a hub id, or the folder of one."""
    steps: Literal["high_noise", "all_noise"] = "high_noise"
    """Grid steps whose candidates are compared: the first two, or every one but the last, which draws nothing."""
    pairs: Literal["noisy", "clean"] = "noisy"
    """`noisy`: candidates of one step, scored at their own noise level; `clean`: whole trajectories, scored by their
    last picture, whose verdict is given to each of their steps (PSO)."""
    candidates: Annotated[int, Field(ge=2)] = 4
    """k: candidates drawn from one noisy state, or whole trajectories from one noise; the best and the worst pair."""
    threshold: tuple[Share, Share] = (0.45, 0.60)
    """Least gap between the softmax shares of winner and loser for a pair to be kept, without noise and at full noise;
    in between it grows with sigma of the level at which the candidates lie."""
    beta: Positive = 500.0
    """Strength of the preference in `-log sigmoid(beta H / d)`."""
    reward_timestep: Literal["next", "current"] = "next"
    """Timestep the reward model is told: the candidates' own, or that of the step which drew them (as LPO's code)."""
    reward_outside: Literal["refuse", "clamp"] = "refuse"
    """Timesteps that the reward model was not trained on: an error, or the nearest that it knows."""
    reward_guidance: bool = True
    """Let the reward model guide its deepest feature by the empty prompt, where it was published so."""
    lr: Positive = 1e-6
    """Learning rate of the preference steps; used when `optimizer` is own."""
    optimizer: Literal["own", "shared"] = "own"
    """An optimizer for the preference steps beside the student's, so that neither's moments see the other's gradients;
    or one for both, which saves two copies of the trained weights."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.threshold
        if low > high:
            raise ValueError(f"threshold should not fall with noise, but {low} > {high}")
        return self


class ProbeTable(Table):
    """Pictures of fixed prompts and seeds, drawn again and again, each compared with itself before training."""

    every: Count | None = None
    """Iterations between probes; null: none."""
    num_prompts: Annotated[int, Field(ge=2)] = 16
    """Prompts, the first of the data."""
    num_seeds: Annotated[int, Field(ge=2)] = 4
    """Pictures per prompt."""
    streak: Count = 2
    """Probes in a row with a figure outside its band that make a collapse."""
    excuse_when_reward_falls: bool = True
    """Statistics of pictures do not count while the training reward is below where it began by its whole 95% interval;
    variety and the judge beside the reward always do."""
    stop_on_collapse: bool = False
    """End the run at a collapse, with the state saved and exit code 4."""


Band = Annotated[float, Field(gt=0)] | None


class Bands(Table):
    """How far a figure may move before a tripwire fires. Figures of the probe: share of their value before training;
    null: not watched. A figure is outside when its whole 95% interval is."""

    brightness: Band = 0.10
    """Mean luminance."""
    saturation: Band = 0.25
    """Mean saturation (HSV)."""
    contrast: Band = 0.25
    """Standard deviation of luminance."""
    colourfulness: Band = 0.25
    """Hasler and Suesstrunk's measure."""
    clipped: Band = None
    """Share of values that are black or full; near zero to begin with, so its share of that says little."""
    laplacian: Band = 0.50
    """Variance of the Laplacian: edges."""
    high_frequency: Band = 0.50
    """Energy of fine texture."""
    entropy: Band = 0.15
    """Entropy of grey values."""
    diversity: Band = 0.10
    """Distance between pictures of one prompt; only a fall counts."""
    held_out: Band = 0.10
    """A judge other than the reward model (the inspector on the embedded world, which labelled some of the reward
    model's pairs, so it shares mistakes with it); only a fall counts."""
    brightness_drift: Positive = 0.10
    """Student's against real pictures before the discriminator, on [0, 1], smoothed over iterations."""
    d_win_loss: Positive = 0.135
    """Discriminator loss at which it tells everything apart."""
    d_win_streak: Count = 3
    """Iterations in a row at or below `d_win_loss` that count."""
    dm_gradient: Positive = 5.0
    """Distribution-matching gradient at the student's output, over its running mean."""
