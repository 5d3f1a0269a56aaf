"""Plot a reward model's training: loss, and how often it finds the winner of held-out pairs, by noise level.

curve.py METRICS.jsonl OUT.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
left.plot([row["step"] for row in rows], [row["loss"] for row in rows])
left.set(xlabel="iteration", ylabel="loss", ylim=(0, None))
measured = [row for row in rows if any(key.startswith("accuracy/") for key in row)]
for key in [key for key in measured[0] if key.startswith("accuracy/")]:
    right.plot(
        [row["step"] for row in measured],
        [row[key] for row in measured],
        marker="o",
        label=key.removeprefix("accuracy/"),
    )
right.axhline(0.5, color="grey", linewidth=0.8)
right.set(xlabel="iteration", ylabel="winners found, held-out pairs", ylim=(0.45, 1))
right.legend(title="timestep", loc="center left", bbox_to_anchor=(1, 0.5))
figure.savefig(sys.argv[2], dpi=110)
