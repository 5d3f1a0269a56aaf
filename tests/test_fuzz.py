"""A slice of docs/experiments/fuzz.py: hostile inputs of every kind end with an exit code of their own and one line."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from flashdmd_cli.workflows import compare, distill, export, sample  # noqa: F401 (imports of commands may print)

from .fuzzing import KINDS, Case, fault

COUNT = 20


@pytest.mark.parametrize("kind", KINDS)
def test_no_hostile_input_is_a_fault_of_ours(kind, tmp_path):
    @seed(0)
    @settings(max_examples=COUNT, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(KINDS[kind]())
    def run(case: Case) -> None:
        assert (found := fault(case, tmp_path)) is None, f"{case.words}: {found}"

    run()


def test_the_check_finds_what_it_looks_for(tmp_path, monkeypatch):
    monkeypatch.setattr("flashdmd_cli.runs.recipe.parse_yaml", lambda text: 1 / 0)
    assert "exit code 1: ZeroDivisionError" in str(fault(Case(["distill", "--dry-run"]), tmp_path))
    (tmp_path / "elsewhere").mkdir()
    assert "wrote outside" in str(fault(Case(["recipes", "copy", "sdxl-4step", "../elsewhere/r.yaml"]), tmp_path))
