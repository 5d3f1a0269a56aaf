"""Runs commands on hostile inputs of seven kinds, see tests/fuzzing.py, and counts what they do wrong.

    python docs/experiments/fuzz.py --count 10000 --out fuzz.json

A command may end with exit code 0, 2 or 3; it must not raise an exception, end with 1, print control characters, or
write outside of `--out`. Seeded; the commands run in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
sys.path.insert(0, str(Path(__file__).parents[2]))

import diffusers  # noqa: F401 (its messages at import would be taken for those of the first command)
from hypothesis import HealthCheck, Phase, given, seed, settings

from flashdmd_cli.workflows import distill, evaluate, export, sample  # noqa: F401
from tests.fuzzing import KINDS, Case, fault


def fuzz(kind: str, count: int, number: int) -> dict[str, object]:
    """Run `count` cases of a kind; how many there were, the seconds, and the faults with their numbers."""
    faults, done, began, worked = Counter[str](), 0, time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:

        @seed(number)
        @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(KINDS[kind]())
        def run(case: Case) -> None:
            nonlocal done
            done += 1
            if (found := fault(case, Path(folder))) is not None:
                name = re.sub(r"\S*work/|0x[0-9a-f]+|\d+", "#", found)[:200]
                faults[name] += 1
                if faults[name] == 1:
                    print(f"{kind}: {case.words}\n  {found}", file=sys.stderr, flush=True)

        run()
    seconds = {"wall": round(time.monotonic() - began), "processor": round(time.process_time() - worked)}
    return {"inputs": done, "seconds": seconds, "faults": dict(faults)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    document: dict[str, object] = {}
    for kind in asked.only:
        document[kind] = fuzz(kind, -(-asked.count // len(asked.only)), asked.seed)
        print(kind, json.dumps(document[kind]), flush=True)
    text = json.dumps(document, indent=2)
    if asked.out is not None:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
