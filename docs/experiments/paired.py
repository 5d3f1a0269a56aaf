"""Differences between two runs of the same seeds, with the 95% t-interval that so few seeds allow.

paired.py NAME[@LENGTH] AGAINST[@LENGTH] CURVES...   Folders NAME-SEED of curve.sh or align.sh; LENGTH: the last one
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t
from table import FIGURES


def figures(name: str, folders: list[Path]) -> dict[str, dict[str, float]]:
    """`{seed: figures}` of the runs called `name`."""
    name, _, length = name.partition("@")
    found = {}
    for folder in folders:
        kind, _, seed = folder.name.rpartition("-")
        lengths = [int(each.parent.name) for each in folder.glob("*/student.json")]
        wanted = int(length) if length else max(lengths, default=0)
        if kind == name and wanted in lengths:
            text = (folder / str(wanted) / "metrics.json").read_text()
            (found[seed],) = json.loads(text)["results"].values()
    return found


def main() -> None:
    one, other = (figures(name, list(map(Path, sys.argv[3:]))) for name in sys.argv[1:3])
    seeds = sorted(one.keys() & other.keys())
    print(f"{sys.argv[1]} minus {sys.argv[2]}, seeds {', '.join(seeds)}")
    for key in FIGURES:
        each = [one[seed][key] - other[seed][key] for seed in seeds]
        half = t.ppf(0.975, len(each) - 1) * stdev(each) / len(each) ** 0.5
        told = ", ".join(f"{value:+.3f}" for value in each)
        print(f"  {key:17s} {mean(each):+7.3f} ± {half:.3f}   ({told})")


if __name__ == "__main__":
    main()
