"""Pixels only: this project's resizer against img2dataset's, on the same bytes, alternating picture by picture.

    pip install img2dataset pillow numpy
    python docs/log/prepare-data/benchmark.py --num 60

Both read a file's bytes, bring the short side to `side`, cut the centre and encode a JPEG at quality 95. img2dataset's
settings: center_crop, downscale area, upscale lanczos. Each picture is done by both, one after the other and in turns
which is first, `--rounds` times; the best round of each picture counts, so that other work on the machine weighs less.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from flashdmd_cli.data.pictures import decode, encode, fit, open_picture

CASES = (("jpg", 4000, 3000), ("jpg", 2048, 1536), ("jpg", 1200, 900), ("jpg", 640, 480), ("png", 1200, 900),
         ("webp", 1200, 900))  # fmt: skip


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Structure at all scales, falling off as in photographs, and grain: it compresses about as photographs do."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), dtype=np.float32)
    for octave in range(2, 9):
        cells = 2**octave
        coarse = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            total[..., channel] += np.asarray(layer) / octave**1.5
    total += rng.standard_normal(total.shape).astype(np.float32) * 0.03
    return Image.fromarray(np.clip(total * 60 + 120, 0, 255).astype(np.uint8))


def files(kind: str, width: int, height: int, num: int) -> list[bytes]:
    """Encoded photographs."""
    found = []
    for seed in range(num):
        stream = io.BytesIO()
        photo(seed, width, height).save(stream, {"jpg": "JPEG"}.get(kind, kind.upper()), quality=90)
        found.append(stream.getvalue())
    return found


def ours(side: int) -> Callable[[bytes], int]:
    def run(data: bytes) -> int:
        opened = open_picture(data)
        picture, _ = decode(opened, side)
        return len(encode(fit(picture, side, (opened.height, opened.width)).picture, "jpg"))

    return run


def theirs(side: int) -> Callable[[bytes], int]:
    from img2dataset.resizer import Resizer

    resizer = Resizer(side, "center_crop", False, encode_quality=95, encode_format="jpg")

    def run(data: bytes) -> int:
        made, *_, error = resizer(io.BytesIO(data))
        assert error is None, error
        return len(made)

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, nargs="*", default=[512, 1024])
    given = parser.parse_args()
    print("| files | to | img2dataset, pictures/s | this project, pictures/s | ratio |\n|---|---|---|---|---|")
    for kind, width, height in CASES:
        batch = files(kind, width, height, given.num)
        for side in given.side:
            if side > min(width, height):
                continue
            runs = {"theirs": theirs(side), "ours": ours(side)}
            best = {name: [float("inf")] * len(batch) for name in runs}
            for turn in range(given.rounds):
                for index, data in enumerate(batch):
                    for name in sorted(runs, reverse=bool((turn + index) % 2)):
                        began = time.perf_counter()
                        runs[name](data)
                        best[name][index] = min(best[name][index], time.perf_counter() - began)
            rate = {name: len(batch) / sum(times) for name, times in best.items()}
            about = f"{kind} {width} x {height}, {sum(map(len, batch)) / len(batch) / 1000:.0f} kB"
            told = f"{rate['theirs']:.1f} | {rate['ours']:.1f} | {rate['ours'] / rate['theirs']:.2f}"
            print(f"| {about} | {side} | {told} |", flush=True)


if __name__ == "__main__":
    main()
