"""Feeds the test images of Pillow to `prepare-data`, each named as a picture, and compares the kept ones with Pillow.

    python docs/experiments/pillow_images.py --out pillow-images.json

The images are in Pillow's source distribution, which pip downloads from PyPI (47 MB); many are damaged on purpose. Each
file below Tests/images becomes `NNNN.png`, whatever its format, with its name as the caption. The command runs in a
process of its own: no abort, no hang, a reason for everything that is rejected, and its peak memory. Then every kept
picture is decoded again at full size, and its size and colours are compared with what Pillow makes of the file:
`ImageOps.exif_transpose(Image.open(file)).convert("RGB")`. Where they differ, so does a second reading that follows the
conversion that was counted: transparency on white, 16 bits scaled, colour profile to sRGB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tarfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import PIL
from PIL import Image, ImageOps

from flashdmd_cli.data.pictures import decode, open_picture

SIDE = 8
SECONDS = 900
"""After this the command counts as hanging."""


def images(work: Path) -> list[tuple[str, Path]]:
    """Every file below Tests/images of the installed version's source distribution: its name, and its copy."""
    wanted = f"pillow=={PIL.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest"]
    if not list(work.glob("pillow-*.tar.gz")):
        subprocess.run([*pip, str(work), wanted], check=True)
    source, found = work / "in", []
    source.mkdir(exist_ok=True)
    with tarfile.open(next(work.glob("pillow-*.tar.gz"))) as tar:
        members = [each for each in tar if each.isfile() and "/Tests/images/" in each.name]
        for number, member in enumerate(sorted(members, key=lambda each: each.name)):
            name, path = member.name.partition("/Tests/images/")[2], source / f"{number:04d}.png"
            file = tar.extractfile(member)
            assert file is not None
            path.write_bytes(file.read())
            path.with_suffix(".txt").write_text(name, encoding="utf-8")
            found.append((name, path))
    return found


def prepared(work: Path) -> dict[str, Any]:
    """Run the command; its exit code, seconds and peak memory."""
    words = ["prepare-data", str(work / "in"), "--out", str(work / "out"), "--resolution", str(SIDE), "--yes"]
    words += ["--duplicates", "keep", "--format", "folder", "--quiet"]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "flashdmd_cli", *words], capture_output=True, text=True, check=False,
                          timeout=SECONDS)  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {"exit code": done.returncode, "stderr": done.stderr.strip()[-500:],
            "seconds": round(time.monotonic() - began), "peak memory, GiB": round(peak, 2)}  # fmt: skip


def pillows(path: Path) -> Image.Image:
    """What Pillow makes of a file."""
    with Image.open(path) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def followed(image: Image.Image, notes: list[str]) -> np.ndarray | None:
    """A second reading of what Pillow made, with the conversions in `notes`; None for a colour profile."""
    if "profile" in notes:
        return None
    if "16 bit" in notes:
        values = np.asarray(image).astype(np.float64).clip(0, 65535)
        bits = int(values.max()).bit_length()
        top = 65535 if bits > 12 else 2 ** max(bits, 8) - 1
        return np.repeat(np.floor(values * 255 / top + 0.5)[..., None], 3, axis=2)
    if "alpha" in notes:
        ground = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")).astype(np.float64)
    return np.asarray(image.convert("RGB")).astype(np.float64)


def compared(path: Path, size: tuple[int, int]) -> dict[str, Any]:
    """Size and colours of a kept picture against Pillow's; `size` is the recorded one (height, width)."""
    ours, notes = decode(open_picture(path.read_bytes()))
    theirs = pillows(path)
    row: dict[str, Any] = {"mode": theirs.mode, "notes": notes}
    if size != theirs.size[::-1]:
        row["size"] = f"{size[::-1]}, Pillow {theirs.size}"
    if ours.size != theirs.size:
        return row | {"why": "another size"}
    mine = np.asarray(ours).astype(np.float64)
    apart = np.abs(mine - np.asarray(theirs.convert("RGB"))).max(initial=0)
    if not apart:
        return row | {"why": "equal"}
    second = followed(theirs, notes)
    kind = next((each for each in ("profile", "16 bit", "alpha", "cmyk") if each in notes), "no conversion")
    if second is None:
        return row | {"why": kind, "largest": float(apart)}
    left = float(np.abs(mine - second).max(initial=0))
    return row | {"why": kind if left <= 1 else f"{kind}, unexplained", "largest": float(apart), "left": left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/pillow-images"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    found = images(work)
    document: dict[str, Any] = {"Pillow": PIL.__version__, "files": len(found), "command": prepared(work)}
    rejected = [json.loads(line) for line in (work / "out" / "rejected.jsonl").read_text().splitlines()]
    document["kept"] = json.loads((work / "out" / "manifest.json").read_text())["collection"]["kept"]
    document["rejected"] = dict(Counter(row["reason"] for row in rejected).most_common())
    document["details"] = {
        reason: dict(
            Counter(row["detail"].partition(":")[0] for row in rejected if row["reason"] == reason).most_common(8)
        )
        for reason in document["rejected"]
    }
    sizes: dict[str, tuple[int, int]] = {}
    for shard in sorted((work / "out").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    facts = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    sizes[facts["source"]] = tuple(facts["original_size"])
    warnings.simplefilter("ignore")
    rows = {name: compared(path, sizes[path.name]) for name, path in found if path.name in sizes}
    document["compared"] = dict(Counter(row["why"] for row in rows.values()).most_common())
    document["other sizes"] = {name: row["size"] for name, row in rows.items() if "size" in row}
    document["differences"] = {name: row for name, row in rows.items() if row["why"] != "equal"}
    text = json.dumps(document, indent=2)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
