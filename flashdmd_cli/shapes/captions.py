"""The caption grammar: generation of captions from attributes, in several wordings, and parsing."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from flashdmd_cli.shapes.world import ATTRIBUTES, COLORS, SHAPES, SURFACES

WORDINGS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of"),
    "above": ("above", "over", "on top of"),
}
"""Wordings of each relation; the first is the canonical one."""

_OBJECT = rf"an? ({'|'.join(SURFACES)}) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_EVERY_WORDING = "|".join(sorted((w for ways in WORDINGS.values() for w in ways), key=len, reverse=True))
_CAPTION = re.compile(rf"{_OBJECT} ({_EVERY_WORDING}) {_OBJECT}")


def caption(attributes: Tensor, wording: int = 0) -> str:
    """Caption of one row of bound attributes (7,): "a striped red ring to the left of a plain blue square"."""
    names = [values[i] for values, i in zip(ATTRIBUTES.values(), attributes.tolist(), strict=True)]
    shape_1, color_1, surface_1, shape_2, color_2, surface_2, relation = names
    return f"a {surface_1} {color_1} {shape_1} {WORDINGS[relation][wording]} a {surface_2} {color_2} {shape_2}"


def captions(attributes: Tensor, generator: torch.Generator | None = None) -> list[str]:
    """Captions of attributes (B, 7); random wordings with a generator, else the canonical one."""
    ways = torch.zeros(len(attributes), dtype=torch.long)
    if generator is not None:
        ways = torch.randint(len(WORDINGS["left"]), (len(attributes),), generator=generator)
    return [caption(row, way) for row, way in zip(attributes, ways.tolist(), strict=True)]


def parse(text: str) -> list[int]:
    """Bound attributes of a caption, in the order of `ATTRIBUTES`; `ValueError` for any other text."""
    match = _CAPTION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a caption of the embedded world: {text!r}")
    surface_1, color_1, shape_1, wording, surface_2, color_2, shape_2 = match.groups()
    relation = next(name for name, ways in WORDINGS.items() if wording in ways)
    names = (shape_1, color_1, surface_1, shape_2, color_2, surface_2, relation)
    return [values.index(name) for values, name in zip(ATTRIBUTES.values(), names, strict=True)]


def beyond_words(captions: Sequence[str]) -> str | None:
    """A warning if one of `captions` is not in the grammar of the embedded world; else None."""
    for text in captions:
        try:
            parse(text)
        except ValueError:
            return (
                f"warning: the embedded teacher knows its own captions alone, two objects and where they are "
                f"(`a striped red ring above a plain blue square`), and cannot read {text!r}"
            )
    return None
