"""Mean and spread over seeds of what `curve.sh` measured, as a table and on request as a plot of quality against cost.

table.py [--plot FILE] [--pace NAME=SECONDS]... CURVES...

CURVES are folders NAME-SEED of curve.sh, each of its own name; one line per name and length. `NAME raw` is the student
that is not averaged. `--pace`: seconds of an iteration, measured on an idle machine, for runs that shared theirs.
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


Runs = dict[str, dict[int, dict[str, dict[str, float]]]]
"""`{name: {length: {seed: figures and costs}}}`."""


def read(folders: list[Path]) -> Runs:
    """What was measured in folders of `curve.sh` or `align.sh`."""
    runs: Runs = defaultdict(lambda: defaultdict(dict))
    for folder in folders:
        name, _, seed = folder.name.rpartition("-")
        for note in folder.glob("*/student.json"):
            manifest = json.loads(note.read_text())
            cost = {"seconds": manifest["wall_seconds"], "images": manifest["images_seen"]}
            cost |= {"student_updates": manifest["updates"]["student"]}
            for title, measured in ((name, note.parent), (f"{name} raw", note.parent / "raw")):
                if (measured / "results.json").is_file():
                    metrics = json.loads((measured / "results.json").read_text())["metrics"]
                    figures = {key: metrics[key]["value"] for key in FIGURES if key in metrics}
                    runs[title][int(note.parent.name)][seed] = figures | cost
    return runs


def cell(rows: list[dict[str, float]], key: str) -> str:
    """Mean ± standard deviation over seeds."""
    values = [row[key] for row in rows]
    whole, thousandths = ("seconds", "images", "student_updates"), ("composition", "extra_objects", "exact")
    digits = 0 if key in whole else 1 if key == "frechet" else 3 if key in thousandths else 2
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 and key in FIGURES else ""
    return f"{mean(values):.{digits}f}{spread}"


def table(runs: Runs) -> str:
    """Markdown."""
    measured = [row for lengths in runs.values() for rows in lengths.values() for row in rows.values()]
    # Runs from before a figure was measured do not have it.
    columns = ("seconds", "student_updates", *(key for key in FIGURES if all(key in row for row in measured)))
    lines = [f"| run | iterations | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 3) + "|"]
    for name, lengths in sorted(runs.items()):
        for length, rows in sorted(lengths.items()):
            cells = " | ".join(cell(list(rows.values()), key) for key in columns)
            lines.append(f"| {name} | {length} | {len(rows)} | {cells} |")
    return "\n".join(lines)


def plot(runs: Runs, path: Path) -> None:
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
                points = [list(lengths[length].values()) for length in sorted(lengths)]
                spent = [mean(row[cost] for row in rows) for rows in points]
                axis.plot(spent, [mean(row[key] for row in rows) for rows in points], marker="o", label=name)
                low, high = ([pick(row[key] for row in rows) for rows in points] for pick in (min, max))
                axis.fill_between(spent, low, high, alpha=0.2)
            axis.set(title=key.replace("_", " "), xlabel=label)
            axis.grid(alpha=0.3)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--pace", action="append", default=[])
    given = parser.parse_args()
    found = read(given.curves)
    paces = dict(each.split("=") for each in given.pace)
    for name, lengths in found.items():
        if (pace := paces.get(name.removesuffix(" raw"))) is not None:
            for length, seeds in lengths.items():
                for figures in seeds.values():
                    figures["seconds"] = length * float(pace)
    print(table(found))
    if given.plot:
        plot(found, given.plot)
