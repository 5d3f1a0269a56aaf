"""Opens every kind of page, written from hostile captions and names, in headless Chromium: nothing of them may run.

    python docs/experiments/pages_in_chromium.py --chromium /usr/bin/chromium

The pages are those of tests/hostile_pages.py: run, data, demo, evaluation, comparison. The hostile scripts set an
attribute of the page. As a control, the same texts in a page that does not escape them have to set it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from forks import Folders

from tests import conftest, test_distill
from tests.hostile_pages import HOSTILE, dangers, in_folder


def opened(chromium: str, page: Path) -> str:
    """The page's document after Chromium has loaded it and run its scripts."""
    words = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([*words, page.as_uri()], capture_output=True, text=True, check=True, timeout=300)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="chromium")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        teacher = conftest.tiny_folder.__wrapped__(Folders(root))
        sam = test_distill.sam_folder.__wrapped__(Folders(root))
        config = teacher / "unet" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 16}))
        (root / "work").mkdir()
        pages = in_folder(root / "work", teacher, sam)
        pages["control"] = root / "control.html"
        pages["control"].write_text(f"<!doctype html><title>x</title><p>{' '.join(HOSTILE[:3])}")
        for kind, path in pages.items():
            text = opened(asked.chromium, path)
            ran = bool(re.search(r"<html[^>]*data-ran", text))
            kept = re.sub(r"<script>[^<]*</script>", "", text) if kind != "control" else text
            print(json.dumps({"page": kind, "bytes": len(text), "ran": ran, "dangers": len(dangers(kept))}), flush=True)
            assert ran == (kind == "control"), kind


if __name__ == "__main__":
    main()
