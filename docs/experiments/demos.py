"""Mean and spread over seeds of what `flashdmd demo --json` printed, as a table: demos.py DEMO.json ..."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean, stdev

ROWS = {
    "student_4": "**student, 4 steps**",
    "teacher_30": "teacher, 30 steps",
    "teacher_4_ddim": "teacher, 4 DDIM steps",
    "teacher_4_stochastic": "teacher, 4 steps drawn as a student",
}
FIGURES = {"composition": 2, "frechet": 1, "high_frequency": 2, "coverage": 2, "diversity": 2}


def main(paths: list[Path]) -> None:
    """Print the table. A teacher's pictures depend on the seed too: it draws their noise."""
    found = [json.loads(path.read_text()) for path in paths]
    print(f"| {len(found)} seeds | {' | '.join(FIGURES)} |\n{'|---' * (len(FIGURES) + 1)}|")
    for row, label in ROWS.items():
        cells = []
        for key, digits in FIGURES.items():
            values = [document[row][key] for document in found]
            cells.append(f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}")
        print(f"| {label} | {' | '.join(cells)} |")
    print("\nseconds:", ", ".join(f"{document['seconds']:.0f}" for document in found))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
