"""Plot the probe's signals of alignments: a colour per kind of run, a line per seed, a dot where a collapse was told.

signals.py OUT.png NAME=RUN[,RUN...] [NAME=RUN...]     RUN: a folder of `flashdmd align`
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIGNALS = {
    "brightness": "brightness",
    "high_frequency": "fine texture",
    "contrast": "contrast",
    "reward": "reward",
}


def told(run: Path) -> int | None:
    """The iteration at which the tripwire told a collapse."""
    warnings = json.loads((run / "manifest.json").read_text()).get("warnings", [])
    found = [re.match(r"collapse at iteration (\d+)", warning) for warning in warnings]
    return next((int(match[1]) for match in found if match), None)


def moved(row: dict[str, float], signal: str) -> float:
    """Change since before training, in percent; of the reward, whose zero means nothing, as it is."""
    share = row[f"probe_change/{signal}"]
    if signal != "reward":
        return 100 * share
    now = row["probe/reward"]  # the share is of its magnitude before, which was negative
    return share * abs(now) / (1 - share if now < 0 else 1 + share)


figure, panels = plt.subplots(1, len(SIGNALS), figsize=(13, 3.2), layout="constrained")
for colour, kind in zip(("tab:red", "tab:blue", "tab:green"), sys.argv[2:], strict=False):
    name, runs = kind.split("=")
    for index, run in enumerate(map(Path, runs.split(","))):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        looks = {row["step"] + 1: row for row in rows if "probe/outside" in row}
        for panel, signal in zip(panels, SIGNALS, strict=True):
            change = [moved(row, signal) for row in looks.values()]
            panel.plot([0, *looks], [0, *change], color=colour, linewidth=1, label=name if index == 0 else None)
            if (at := told(run)) in looks:
                panel.plot(at, moved(looks[at], signal), "o", color=colour)
for panel, title in zip(panels, SIGNALS.values(), strict=True):
    panel.axhline(0, color="grey", linewidth=0.8)
    panel.set(xlabel="iteration", title=f"{title}, change" + ("" if title == "reward" else " in %"))
panels[0].legend()
figure.savefig(sys.argv[1], dpi=110)
