"""How long a demo says that it will take, and that its length may be chosen until something is learned."""

from __future__ import annotations

import re

import pytest

from flashdmd_cli.runs.checkpoint import save_state, state_folder
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.workflows.demo import forecast as demo_time
from flashdmd_cli.workflows.demo.forecast import FIXED_SECONDS, LONG_SECONDS, Pace, forecast, measure_pace
from flashdmd_cli.workflows.demo.run import remember

PACE = Pace(forward=0.02, decode=0.06)


def test_an_iteration_and_a_picture_cost_their_passes():
    assert PACE.iteration(16) == pytest.approx(16 * (17 * 0.02 + 0.06))
    assert PACE.drawing(128, 60) == pytest.approx(128 * (60 * 0.02 + 0.03))


def test_a_short_demo_is_told_in_a_line():
    seconds = FIXED_SECONDS + 100 * PACE.iteration(16) + PACE.drawing(128, 60)
    (line,) = forecast(PACE, 16, 100, [(128, 60)])
    assert line == f"On this machine it will take about {seconds / 60:.0f} minutes, 11 minutes of it for part 2."
    assert forecast(PACE, 16, 0, [(128, 60)]) == ["On this machine it will take about 3 minutes."]


def test_a_long_demo_is_offered_a_length_that_fits():
    slow = Pace(forward=0.06, decode=0.2)
    first, second = forecast(slow, 16, 100, [(128, 20)])
    assert "about 36 minutes" in first
    offered = int(re.search(r"--iterations (\d+)`", second)[1])  # type: ignore[index]
    rest = FIXED_SECONDS + slow.drawing(128, 20)
    assert rest + offered * slow.iteration(16) <= LONG_SECONDS < rest + (offered + 10) * slow.iteration(16)
    # Where drawing alone takes long, the shortest is offered, and what it takes.
    assert "`--iterations 10`: about 2:17 hours" in forecast(Pace(0.6, 2.0), 16, 100, [(128, 80)])[1]


def test_the_pace_is_that_of_the_denoiser_and_the_decoder(tiny_family, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(demo_time.time, "monotonic", lambda: float(next(clock)))
    pace = measure_pace(tiny_family)
    assert (pace.forward, pace.decode) == (1 / demo_time.PROBE_PICTURES, 1 / demo_time.PROBE_PICTURES)


def test_the_length_is_free_until_something_is_learned(tmp_path):
    remember(tmp_path, {"seed": 0, "iterations": 100})
    remember(tmp_path, {"seed": 0, "iterations": 40})
    states = tmp_path / "student" / "state"
    save_state(state_folder(states, 0), {}, {})
    remember(tmp_path, {"seed": 0, "iterations": 30})
    with pytest.raises(UsageError, match="--seed 1: .* holds a demo with 0"):
        remember(tmp_path, {"seed": 1, "iterations": 30})
    save_state(state_folder(states, 3), {}, {})
    with pytest.raises(UsageError, match="--iterations 40: .* holds a demo with 30"):
        remember(tmp_path, {"seed": 0, "iterations": 40})
