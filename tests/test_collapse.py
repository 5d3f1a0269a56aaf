"""Statistics of pictures, the collapse probe that compares them, and the tripwires of single iterations."""

from __future__ import annotations

import math

import pytest
import torch

from flashdmd_cli.core.pictures import STATISTICS, relative_change, spread
from flashdmd_cli.runs.align_schema import Bands
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.training.collapse import CollapseProbe
from flashdmd_cli.training.probe import NUM_BEFORE, Probe
from flashdmd_cli.training.state import State
from flashdmd_cli.training.steps import Objective


def flat(red: float, green: float, blue: float) -> torch.Tensor:
    return torch.tensor([red, green, blue])[None, :, None, None].expand(1, 3, 32, 32) * 2 - 1


NOISE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
SMOOTH = torch.nn.functional.avg_pool2d(NOISE, 5, 1, 2)


@pytest.mark.parametrize(
    ("name", "more", "less"),
    [
        ("brightness", flat(0.8, 0.8, 0.8), flat(0.2, 0.2, 0.2)),
        ("saturation", flat(1.0, 0.2, 0.2), flat(0.6, 0.5, 0.5)),
        ("contrast", NOISE, 0.5 * NOISE),
        ("colourfulness", flat(1.0, 0.0, 0.0), flat(0.5, 0.5, 0.5)),
        ("clipped", flat(1.0, 0.0, 0.5), flat(0.9, 0.1, 0.5)),
        ("laplacian", NOISE, SMOOTH),
        ("high_frequency", NOISE, SMOOTH),
        ("entropy", NOISE, flat(0.5, 0.5, 0.5)),
    ],
)
def test_each_statistic_moves_with_what_it_is_named_after(name, more, less):
    assert STATISTICS[name](more).shape == (1,) and STATISTICS[name](more).item() > STATISTICS[name](less).item() + 1e-6


def test_values_that_can_be_worked_out_by_hand():
    assert STATISTICS["brightness"](flat(0.0, 1.0, 0.0)).item() == pytest.approx(0.587)
    assert STATISTICS["saturation"](flat(0.8, 0.4, 0.4)).item() == pytest.approx(0.5)
    assert STATISTICS["colourfulness"](flat(1.0, 0.0, 0.0)).item() == pytest.approx(0.3 * 1.25**0.5)
    assert STATISTICS["clipped"](flat(1.0, 0.0, 0.5)).item() == pytest.approx(2 / 3)
    halves = torch.cat([torch.full((1, 3, 32, 16), -1.0), torch.full((1, 3, 32, 16), 1.0)], dim=3)
    assert STATISTICS["entropy"](halves).item() == pytest.approx(1.0)
    assert spread(torch.zeros(2, 3, 3, 4, 4)).tolist() == [0, 0]
    apart = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])[None]
    assert spread(apart).item() == pytest.approx(1.0)


def test_relative_change_is_paired():
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(16, generator=generator) * 10
    change, low, high = relative_change(before * 1.2, before, generator)
    assert change == pytest.approx(0.2) and 0.1 < low < 0.2 < high < 0.3
    # Prompts differ by far more than the change, yet each compared with itself shows it.
    change, low, high = relative_change(before + 0.05, before, generator)
    assert low == pytest.approx(change, rel=1e-4) and high == pytest.approx(change, rel=1e-4)


@pytest.fixture
def watched(tiny_family, tmp_path):
    """A probe whose pictures can be replaced, and the state it remembers in."""

    def build(reward=None, held_out=None, **sets):
        flags = {"probe.every": 1, "probe.num_prompts": 4, "probe.num_seeds": 2, "gan.kind": "none"}
        recipe = load_recipe("align/shapes", flags=flags | {k.replace("__", "."): v for k, v in sets.items()})
        state = State.new(recipe, tiny_family)
        objective = Objective(recipe, tiny_family, tiny_family.grid(4))
        captions = [f"a plain {color} circle above a striped blue ring" for color in ("red", "green", "cyan", "white")]
        probe = CollapseProbe(objective, captions, reward, held_out)
        probe.begin(state)
        return probe, state

    return build


def scaled(probe, state, factor: float) -> None:
    """As if every figure before training had been smaller by `factor`."""
    state.probe["before"] = {name: [v / factor for v in values] for name, values in state.probe["before"].items()}


def test_an_unchanged_student_trips_nothing(watched):
    probe, state = watched()
    for state.iteration in (1, 2, 3):
        figures, warning = probe.check(state)
        assert warning is None and figures["probe/outside"] == 0
    assert figures["probe_change/saturation"] == 0 and figures["probe/diversity"] > 0
    assert probe.is_due(3, 10)


def test_a_figure_outside_its_band_twice_in_a_row_is_a_collapse(watched):
    probe, state = watched(bands__contrast=0.3, probe__streak=2)
    scaled(probe, state, 1.25)
    figures, _ = probe.check(state)
    assert figures["probe_outside/brightness"] == 1 and figures["probe_outside/contrast"] == 0  # bands of 20% and 30%
    state.probe["streaks"] = {"contrast": 5}  # a streak is one figure's, not any figure's
    state.iteration = 7
    assert probe.check(state)[1] is None
    state.iteration = 8
    figures, warning = probe.check(state)
    assert figures["probe/streak"] == 2 and "brightness +25%" in warning and "contrast" not in warning
    assert state.probe["collapsed"]["iteration"] == 8 and state.probe["warnings"] == [warning]
    assert probe.check(state)[1] is None  # told once
    scaled(probe, state, 1.25)
    assert probe.check(state)[1] is None
    assert "contrast" in probe.check(state)[1]  # but a figure that follows is told too


def test_only_a_change_that_is_surely_beyond_the_band_is_outside(watched):
    probe, state = watched(bands__brightness=0.1, probe__streak=1)
    state.probe["before"]["brightness"] = [
        v / factor for v, factor in zip(state.probe["before"]["brightness"], (1.0, 1.0, 1.5, 1.5), strict=True)
    ]
    figures, warning = probe.check(state)
    assert figures["probe_change/brightness"] > 0.1 and figures["probe_outside/brightness"] == 0 and warning is None


def test_the_last_iteration_is_looked_at(watched):
    probe, _ = watched(probe__every=4)
    assert [i for i in range(1, 11) if probe.is_due(i, 10)] == [4, 8, 10]


def test_what_is_not_a_number_is_outside(watched):
    probe, state = watched(probe__streak=1)
    state.probe["before"]["contrast"] = [math.nan] * 4
    figures, warning = probe.check(state)
    assert figures["probe_outside/contrast"] == 1 and "contrast" in warning


def test_only_a_fall_of_diversity_counts(watched):
    probe, state = watched(probe__streak=1)
    recipe = probe.objective.recipe.model_copy(update={"bands": Bands(**dict.fromkeys(STATISTICS, None))})
    probe.objective = Objective(recipe, probe.objective.family, probe.objective.grid)
    scaled(probe, state, 2.0)
    assert probe.check(state)[1] is None
    scaled(probe, state, 0.25)
    assert "diversity -50%" in probe.check(state)[1]


def test_statistics_count_unless_the_reward_has_surely_fallen(watched):
    falling = iter([torch.ones(2)] * 4 + [torch.zeros(2)] * 12)
    probe, state = watched(lambda latents, captions: next(falling), probe__streak=1)
    scaled(probe, state, 1.0)
    state.probe["before"] = {
        k: ([v * 2 for v in vs] if k not in ("reward", "diversity") else vs) for k, vs in state.probe["before"].items()
    }
    figures, warning = probe.check(state)
    assert figures["probe/outside"] > 0 and figures["probe_change/reward"] < 0 and warning is None
    # A reward that may as well have risen excuses nothing.
    state.probe["before"]["reward"] = [-1.0, -1.0, -1.0, 5.0]
    figures, warning = probe.check(state)
    assert figures["probe_change/reward"] < 0 and warning is not None
    del state.probe["collapsed"]
    state.probe["before"]["reward"] = [1.0] * 4
    # Variety that is lost is a collapse whatever the reward does.
    state.probe["before"]["diversity"] = [v * 2 for v in state.probe["before"]["diversity"]]
    assert "diversity -50%" in probe.check(state)[1]
    probe, state = watched(probe__streak=1, probe__excuse_when_reward_falls=False)
    scaled(probe, state, 2.0)
    assert probe.check(state)[1] is not None


# -- tripwires of iterations --------------------------------------------------------------------------------------


def test_discriminator_that_wins_is_told_once_and_stands_while_it_is_silent():
    probe = Probe({}, Bands(d_win_loss=0.2, d_win_streak=2))
    assert probe.check({"discriminator": 0.1}) == []
    assert probe.check({}) == []  # a preference step between two rounds of stage 1
    (warning,) = probe.check({"discriminator": 0.1})
    assert "below 0.2 for 2 iterations" in warning
    silent = {}
    assert probe.check(silent) == [] and silent["tripwires"] == 1
    assert probe.check({"discriminator": 0.1}) == []
    assert probe.check({"discriminator": 1.0}) == []
    assert probe.memory["told"] == [] and probe.memory["warnings"] == [warning]


def test_gradient_of_distribution_matching_above_its_running_mean():
    probe = Probe({}, Bands(dm_gradient=5.0))
    assert all(not probe.check({"output_grad/dm": value}) for value in [1.0] * NUM_BEFORE + [4.5])
    (warning,) = probe.check({"output_grad/dm": 8.0})
    assert "times its running mean" in warning and "optim.lr_student" in warning
    probe = Probe({}, Bands(dm_gradient=5.0))  # the mean is of the last ones: it has come to 3 when 14 follows
    assert all(not probe.check({"output_grad/dm": value}) for value in [1.0] * NUM_BEFORE + [3.0] * 40 + [14.0])


def test_preference_steps_without_pairs_are_told_when_they_are_most():
    probe = Probe({}, Bands())
    assert all(not probe.check({"pairs": num}) for num in [0.0, 5.0, 5.0] * 20)
    told = [warning for _ in range(12) for warning in probe.check({"pairs": 0.0})]
    assert len(told) == 1 and "align.threshold" in told[0]


def test_brightness_against_real_pictures():
    probe = Probe({}, Bands(brightness_drift=0.1))
    assert probe.check({"brightness/student": 0.1, "brightness/real": 0.0}) == []
    probe = Probe({}, Bands(brightness_drift=0.1))
    assert "15% brighter" in probe.check({"brightness/student": 0.3, "brightness/real": 0.0})[0]
    probe = Probe({}, Bands(brightness_drift=0.1))  # one bright batch is no drift
    assert all(not probe.check({"brightness/student": now, "brightness/real": 0.0}) for now in (0.0, 0.5, 0.0))


def test_brightness_waits_for_enough_pictures():
    """The first small batches are dark by chance; what stays so over many of them is told."""
    probe = Probe({}, Bands(brightness_drift=0.1), batch=2)
    figures = [{"brightness/student": 0.6, "brightness/real": 0.0} for _ in range(32)]
    told = [probe.check(each) for each in figures]
    assert not any(told[:31]) and "30% brighter" in told[31][0]
    probe = Probe({}, Bands(brightness_drift=0.1), batch=2)  # and chance evens out
    assert not any(probe.check({"brightness/student": (-1) ** i, "brightness/real": 0.0}) for i in range(300))
    memory = {"drift": 0.3}  # of a run that began before pictures were counted
    assert Probe(memory, Bands(), batch=2).check({"brightness/student": 0.6, "brightness/real": 0.0}) == []
