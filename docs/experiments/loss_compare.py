"""Do two commits train alike? The same short run on both, and where their metrics part.

loss_compare.py COMMIT [COMMIT] [--recipe shapes-4step] [--iterations 20] [--rel 1e-5] [--set KEY=VALUE]...

Without a second commit, against the working tree. Each commit runs from a git worktree of its own on data that it makes
itself (`prepare-data shapes --num 64`), on one thread in float32, so that equal code gives equal bits. Prints one line
for each metric: the largest relative difference and the first iteration beyond `--rel`; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOT_COMPARED = ("step", "seconds_per_kimg", "memory_gb")


def run(tree: Path, out: Path, args: argparse.Namespace) -> list[dict[str, float]]:
    """The metrics of a run with the code in `tree`."""
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def flashdmd(*words: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "flashdmd_cli", *words, "--quiet"],
            check=True,
            cwd=out,
            env=env,
            stdout=subprocess.DEVNULL,
        )

    out.mkdir()
    flashdmd("prepare-data", "shapes", "--num", "64", "--out", "data")
    sets = [word for each in (*args.sets, "model.precision=fp32", "train.log_every=1", "train.preview_every=100000",
                              "train.batch=4", "train.micro_batch=4") for word in ("--set", each)]  # fmt: skip
    flashdmd("distill", "--recipe", args.recipe, "--data", "data", "--out", "student", "--iterations",
             str(args.iterations), *sets)  # fmt: skip
    return [json.loads(line) for line in (out / "student" / "metrics.jsonl").read_text().splitlines()]


def compare(one: list[dict[str, float]], two: list[dict[str, float]], rel: float) -> bool:
    """Print how far each metric differs; whether all are within `rel`."""
    names = sorted({*one[0], *two[0]} - {*NOT_COMPARED})
    alike = True
    for name in names:
        pairs = [(a.get(name), b.get(name)) for a, b in zip(one, two, strict=True)]
        if any((a is None) != (b is None) for a, b in pairs):
            print(f"{name:28s} only on one side")
            alike = False
            continue
        off = [abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in pairs if a is not None and b is not None]
        first = next((i for i, each in enumerate(off) if each > rel), None)
        print(f"{name:28s} {max(off, default=0.0):.1e}" + ("" if first is None else f"   from iteration {first}"))
        alike = alike and first is None
    return alike


def main() -> None:
    """Run both sides and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="+", metavar="COMMIT")
    parser.add_argument("--recipe", default="shapes-4step")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rel", type=float, default=1e-5)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, trees = [], []
        try:
            for number, commit in enumerate(args.commits[:2]):
                trees.append(Path(folder) / f"tree{number}")
                subprocess.run(["git", "worktree", "add", "--detach", "-q", trees[-1], commit], check=True, cwd=ROOT)
            for number, tree in enumerate([*trees, ROOT][:2]):
                rows.append(run(tree, Path(folder) / f"run{number}", args))
        finally:
            for tree in trees:
                subprocess.run(["git", "worktree", "remove", "--force", tree], check=False, cwd=ROOT)
    sys.exit(0 if compare(rows[0], rows[1], args.rel) else 1)


if __name__ == "__main__":
    main()
