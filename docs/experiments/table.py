"""Mean and spread over seeds of what `curve.sh` measured, as a table and on request as a plot of quality against cost.

table.py [--plot FILE] CURVES...   Folders NAME-SEED of curve.sh; one line per name and length.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

FIGURES = (
    "composition",
    "frechet",
    "high_frequency",
    "coverage",
    "pattern_coverage",
    "diversity",
    "extra_objects",
    "exact",
)


def read(folders: list[Path]) -> dict[str, dict[int, list[dict[str, float]]]]:
    """`{name: {length: [figures and costs of each seed]}}`."""
    runs: dict[str, dict[int, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for folder in folders:
        name = folder.name.rpartition("-")[0]
        for note in folder.glob("*/student.json"):
            manifest = json.loads(note.read_text())
            (metrics,) = json.loads((note.parent / "metrics.json").read_text())["results"].values()
            cost = {"seconds": manifest["wall_seconds"], "images": manifest["images_seen"]}
            cost |= {"student_updates": manifest["updates"]["student"]}
            runs[name][int(note.parent.name)].append({key: metrics[key] for key in FIGURES if key in metrics} | cost)
    return runs


def cell(rows: list[dict[str, float]], key: str) -> str:
    """Mean ± standard deviation over seeds."""
    values = [row[key] for row in rows]
    whole, thousandths = ("seconds", "images", "student_updates"), ("composition", "extra_objects", "exact")
    digits = 0 if key in whole else 1 if key == "frechet" else 3 if key in thousandths else 2
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and key in FIGURES else ""
    return f"{mean(values):.{digits}f}{spread}"


def table(runs: dict[str, dict[int, list[dict[str, float]]]]) -> str:
    """Markdown."""
    measured = [row for lengths in runs.values() for rows in lengths.values() for row in rows]
    # Runs from before a figure was measured do not have it.
    columns = ("seconds", "student_updates", *(key for key in FIGURES if all(key in row for row in measured)))
    lines = [f"| run | iterations | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 3) + "|"]
    for name, lengths in sorted(runs.items()):
        for length, rows in sorted(lengths.items()):
            cells = " | ".join(cell(rows, key) for key in columns)
            lines.append(f"| {name} | {length} | {len(rows)} | {cells} |")
    return "\n".join(lines)


def plot(runs: dict[str, dict[int, list[dict[str, float]]]], path: Path) -> None:
    """Quality against cost, in pictures and in seconds: lines through the means, bands from least to most."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = ("composition", "frechet", "high_frequency", "coverage")
    costs = {"images": "pictures trained on", "seconds": "seconds of training, one thread"}
    figure, grid = plt.subplots(
        len(costs), len(shown), figsize=(3.6 * len(shown), 6), layout="constrained", sharey="col"
    )
    for axes, (cost, label) in zip(grid, costs.items(), strict=True):
        for axis, key in zip(axes, shown, strict=True):
            for name, lengths in sorted(runs.items()):
                points = [lengths[length] for length in sorted(lengths)]
                spent = [mean(row[cost] for row in rows) for rows in points]
                axis.plot(spent, [mean(row[key] for row in rows) for rows in points], marker="o", label=name)
                low, high = ([pick(row[key] for row in rows) for rows in points] for pick in (min, max))
                axis.fill_between(spent, low, high, alpha=0.2)
            axis.set(title=key.replace("_", " "), xlabel=label)
            axis.grid(alpha=0.3)
    grid[0][0].legend()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    found = read(given.curves)
    print(table(found))
    if given.plot:
        plot(found, given.plot)
