"""Differences between two runs of the same seeds, with the 95% t-interval that so few seeds allow.

paired.py NAME[@LENGTH] AGAINST[@LENGTH] CURVES...   Folders NAME-SEED of curve.sh or align.sh; LENGTH: the last one.
`NAME raw` is the student that is not averaged.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t
from table import FIGURES, read


def main() -> None:
    """One line per figure: mean difference, half-width of its interval, the difference of each seed."""
    runs, sides, titles = read(list(map(Path, sys.argv[3:]))), [], []
    for asked in sys.argv[1:3]:
        name, _, length = asked.partition("@")
        if name not in runs:
            sys.exit(f"{name}: no such run; there is {', '.join(sorted(runs))}")
        chosen = int(length) if length else max(runs[name])
        sides.append(runs[name][chosen])
        titles.append(f"{name} at {chosen}")
    one, other = sides
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) < 2:
        sys.exit("an interval needs two seeds that both runs have")
    print(f"{titles[0]} minus {titles[1]}, seeds {', '.join(seeds)}")
    for key in FIGURES:
        each = [one[seed][key] - other[seed][key] for seed in seeds]
        half = t.ppf(0.975, len(each) - 1) * stdev(each) / len(each) ** 0.5
        told = ", ".join(f"{value:+.3f}" for value in each)
        print(f"  {key:17s} {mean(each):+7.3f} ± {half:.3f}   ({told})")


if __name__ == "__main__":
    main()
