"""Preference pairs of the embedded world: rendered and sampled pictures, labelled by the inspector."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from flashdmd_cli.shapes.captions import captions
from flashdmd_cli.shapes.counting import count_objects
from flashdmd_cli.shapes.inspector import Inspector
from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import ATTRIBUTES, NUM_OBJECTS, add_object, sample_attributes, sample_scenes, where

NUM_PAIRS = 7200
CHUNK = 120
RENDERED_SHARE = 1 / 3
"""Fraction of pairs with rendered pictures, which are cheap and allow choosing the errors. The others are sampled in
few steps, with errors like those of the candidates of a preference step."""
RENDERED_TIES = 0.1
"""Fraction of rendered pairs with two correct pictures."""
THIRD_OBJECT = 0.25
"""Fraction of wrong pictures whose only error is a third object. Without them, students learned to draw a third object,
which neither the reward model nor the inspector detected (docs/log/2026-11-21-align.md)."""

SAME_SCENE = 0.5
"""Fraction of rendered pairs with a winner whose pictures differ only in the error, since the candidates of a
preference step are similar to each other, too."""

Draw = Callable[[Sequence[str], int], Tensor]
"""(captions, index of the first picture) -> pictures (N, 3, 64, 64) on [-1, 1]."""


def build_pairs(
    draw: Draw, inspector: Inspector, folder: Path, num: int = NUM_PAIRS, seed: int = 0,
    say: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """Write `folder/pairs.jsonl` and its pictures; a second call resumes.

    A picture is correct if the inspector predicts all seven attributes of the caption and there is no third object
    (known for rendered pictures, counted in sampled ones). A correct picture wins against a wrong one; otherwise it is
    a tie.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for start in range(0, num, CHUNK):
        part = folder / f".rows-{start:06d}.json"
        if not part.exists():
            part.write_text(json.dumps(_chunk(draw, inspector, folder, start, min(CHUNK, num - start), seed)))
            say(f"pairs {min(start + CHUNK, num)}/{num}")
        rows += json.loads(part.read_text())
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _chunk(
    draw: Draw, inspector: Inspector, folder: Path, start: int, num: int, seed: int
) -> list[dict[str, object]]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
    wanted = sample_attributes(num, generator)
    texts = captions(wanted, generator)
    num_rendered = round(num * RENDERED_SHARE)
    # One side of a rendered pair is correct, the other has one to seven wrong attributes: with exactly one wrong
    # attribute, the model did not learn in 500 steps (docs/log/2026-11-21-reward.md).
    wrong_side = torch.randint(2, (num_rendered,), generator=generator)
    tie = torch.rand(num_rendered, generator=generator) < RENDERED_TIES
    third = torch.rand(num_rendered, generator=generator) < THIRD_OBJECT
    alike = (torch.rand(num_rendered, generator=generator) < SAME_SCENE) & ~tie
    sides, right = [], []
    for side in range(2):
        wrong = (wrong_side == side) & ~tie
        changed = wrong & ~third
        shown = [_changed(row, generator) if miss else row for row, miss in zip(wanted, changed, strict=False)]
        attributes = torch.stack(shown)
        scenes = sample_scenes(num_rendered, generator, attributes=attributes)
        # The same random numbers for both sides.
        free = torch.Generator().manual_seed(generator.initial_seed() + 1)
        scenes = where(alike, sample_scenes(num_rendered, free, attributes=attributes), scenes)
        rendered = render(scenes, generator)
        rendered[wrong & third] = render(add_object(scenes, generator), generator)[wrong & third]
        drawn = draw(texts[num_rendered:], (2 * start + side * num) + 1_000_000)
        pictures = torch.cat([rendered, drawn.clamp(-1, 1)])
        two_only = torch.cat([~(wrong & third), count_objects(drawn) <= NUM_OBJECTS])
        sides.append(pictures)
        right.append((inspector.read(pictures).attributes == wanted).all(dim=1) & two_only)
    rows: list[dict[str, object]] = []
    for i, text in enumerate(texts):
        names = [f"pictures/{start + i:06d}-{side}.png" for side in range(2)]
        for name, pictures in zip(names, sides, strict=True):
            pixels = ((pictures[i] + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous()
            Image.fromarray(pixels.numpy()).save(folder / name)
        label = 0.5 if right[0][i] == right[1][i] else float(right[1][i])
        rows.append({"prompt": text, "image_0": names[0], "image_1": names[1], "label": label})
    return rows


def _changed(attributes: Tensor, generator: torch.Generator) -> Tensor:
    """The attributes (7,) with one to seven of them changed; small numbers are more likely."""
    changed = attributes.clone()
    count = 1 + int(len(ATTRIBUTES) * torch.rand((), generator=generator) ** 2)
    for column in torch.randperm(len(ATTRIBUTES), generator=generator)[:count].tolist():
        size = len(list(ATTRIBUTES.values())[column])
        changed[column] = (changed[column] + 1 + int(torch.randint(size - 1, (), generator=generator))) % size
    return changed
