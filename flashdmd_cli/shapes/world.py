"""Scenes of the embedded world: two objects with bound attributes, a relation, and free attributes.

The seven *bound* attributes are given in the caption and measured by composition accuracy. All others are free:
few-step samplers lose their diversity first, and mode coverage measures whether they keep their distribution.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

IMAGE_SIZE = 64
"""Side of a picture in pixels."""

NUM_OBJECTS = 2
"""Number of objects in a caption."""

SHAPES = ("circle", "square", "triangle", "ring")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SURFACES = ("plain", "striped", "dotted")
RELATIONS = ("left", "above")
PATTERNS = ("none", "stripes", "checks", "blobs")

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape_1": SHAPES,
    "color_1": COLORS,
    "surface_1": SURFACES,
    "shape_2": SHAPES,
    "color_2": COLORS,
    "surface_2": SURFACES,
    "relation": RELATIONS,
}
"""The seven bound attributes in a fixed order. Object 1 is the left (or upper) one."""

NUM_COMBINATIONS = 4 * 8 * 3 * 4 * 8 * 3 * 2

# Base colours in RGB on [0, 1], further apart than the jitter, so that colours are never ambiguous.
PALETTE = torch.tensor(
    [
        [0.90, 0.12, 0.14],
        [0.98, 0.55, 0.05],
        [0.97, 0.92, 0.15],
        [0.13, 0.68, 0.20],
        [0.15, 0.85, 0.90],
        [0.15, 0.25, 0.90],
        [0.62, 0.18, 0.78],
        [0.96, 0.96, 0.96],
    ]
)

HOLD_OUT_EVERY = 10


@dataclass(frozen=True)
class Scenes:
    """A batch of `B` scenes. Lengths are in pixels, angles in radians, colours in RGB on [0, 1].

    Each has two objects, or three after `add_object`.
    """

    shape: Tensor  # (B, 2) long
    color: Tensor  # (B, 2) long
    surface: Tensor  # (B, 2) long
    relation: Tensor  # (B,) long
    center: Tensor  # (B, 2, 2) x, y
    radius: Tensor  # (B, 2)
    tilt: Tensor  # (B, 2) rotation of the outline
    rgb: Tensor  # (B, 2, 3) jittered colour
    texture: Tensor  # (B, 2, 4) angle, period, two phases in [0, 1)
    pattern: Tensor  # (B,) long, background pattern
    ground: Tensor  # (B, 2, 3) the two background colours
    gradient: Tensor  # (B,) angle of the background gradient
    motif: Tensor  # (B, 4) angle, period, two phases of the background pattern
    field: Tensor  # (B, 8, 8) noise behind the blobs
    grain: Tensor  # (B,) standard deviation of the grain, on [0, 1]

    def __len__(self) -> int:
        return self.shape.shape[0]

    def to(self, device: torch.device | str) -> Scenes:
        """The scenes on another device."""
        return Scenes(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def attributes(self) -> Tensor:
        """Bound attributes, (B, 7) long, columns in the order of `ATTRIBUTES`."""
        s, c, f = self.shape, self.color, self.surface
        return torch.stack([s[:, 0], c[:, 0], f[:, 0], s[:, 1], c[:, 1], f[:, 1], self.relation], dim=1)


def where(chosen: Tensor, scenes: Scenes, others: Scenes) -> Scenes:
    """Rows of `scenes` where `chosen` (B,) is true, else of `others`."""
    values = {}
    for field in fields(Scenes):
        one, two = getattr(scenes, field.name), getattr(others, field.name)
        values[field.name] = torch.where(chosen.view(-1, *(1,) * (one.ndim - 1)), one, two)
    return Scenes(**values)


def combination_index(attributes: Tensor) -> Tensor:
    """Index (B,) long of each row of bound attributes (B, 7) in the mixed-radix enumeration of all combinations."""
    index = torch.zeros(len(attributes), dtype=torch.long)
    for column, values in zip(attributes.unbind(1), ATTRIBUTES.values(), strict=True):
        index = index * len(values) + column
    return index


def attributes_of(index: Tensor) -> Tensor:
    """Inverse of `combination_index`: (B,) long to (B, 7) long."""
    columns = []
    for values in reversed(ATTRIBUTES.values()):
        columns.append(index % len(values))
        index = index // len(values)
    return torch.stack(columns[::-1], dim=1)


def is_held_out(attributes: Tensor) -> Tensor:
    """Whether each row (B, 7) belongs to the tenth of all combinations that is not in training data, (B,) bool."""
    # With Knuth's multiplicative hash, 8% to 12% of the combinations with any given attribute value are held out.
    return (combination_index(attributes) * 2654435761 % 2**32) // 16 % HOLD_OUT_EVERY == 0


def sample_attributes(num: int, generator: torch.Generator, held_out: bool = False) -> Tensor:
    """`num` random rows of bound attributes (num, 7) long, uniform over the training (or held-out) combinations."""
    everything = attributes_of(torch.arange(NUM_COMBINATIONS))
    pool = everything[is_held_out(everything) == held_out]
    return pool[torch.randint(len(pool), (num,), generator=generator)]


def sample_scenes(
    num: int, generator: torch.Generator, held_out: bool = False, attributes: Tensor | None = None
) -> Scenes:
    """`num` random scenes; `attributes` (num, 7) fixes the bound attributes, if given."""
    if attributes is None:
        attributes = sample_attributes(num, generator, held_out)
    a = attributes

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(num, *shape, generator=generator)

    radius = uniform(2, low=10.5, high=14.0)
    center = _place(radius, a[:, 6], generator)
    color = torch.stack([a[:, 1], a[:, 4]], dim=1)
    rgb = (PALETTE[color] + uniform(2, 3, low=-0.06, high=0.06)).clamp(0, 1)

    # Backgrounds have low saturation, so that objects are always visible.
    grey = uniform(2, 1, low=0.2, high=0.85)
    ground = (grey + uniform(2, 3, low=-0.16, high=0.16)).clamp(0, 1)
    return Scenes(
        shape=torch.stack([a[:, 0], a[:, 3]], dim=1),
        color=color,
        surface=torch.stack([a[:, 2], a[:, 5]], dim=1),
        relation=a[:, 6],
        center=center,
        radius=radius,
        tilt=uniform(2, low=-0.35, high=0.35),
        rgb=rgb,
        texture=torch.stack([uniform(2, high=torch.pi), uniform(2, low=5.5, high=7.5), uniform(2), uniform(2)], dim=-1),
        pattern=torch.randint(len(PATTERNS), (num,), generator=generator),
        ground=ground,
        gradient=uniform(high=2 * torch.pi),
        motif=torch.stack([uniform(high=torch.pi), uniform(low=9.0, high=15.0), uniform(), uniform()], dim=-1),
        field=torch.randn(num, 8, 8, generator=generator),
        grain=uniform(low=0.004, high=0.014),
    )


def add_object(scenes: Scenes, generator: torch.Generator) -> Scenes:
    """The scenes with a third object that is not in the caption: a copy of one of the two in half of the cases, else
    random.

    It does not touch the others, and its radius is as large as that allows (up to 14, nearly always 8 or more).
    """
    num, tries, gap = len(scenes), 256, 1.5
    places = gap + torch.rand(num, tries, 2, generator=generator) * (IMAGE_SIZE - 2 * gap)
    to_objects = torch.cdist(places, scenes.center) - scenes.radius[:, None] - gap  # (B, tries, 2)
    to_border = torch.minimum(places, IMAGE_SIZE - places).amin(dim=2) - gap
    room = torch.minimum(to_objects.amin(dim=2), to_border)
    chosen = room.clamp(max=8).argmax(dim=1)  # the first with enough room, or else the one with the most
    every = torch.arange(num)
    wanted = 8 + 6 * torch.rand(num, generator=generator)
    radius = torch.minimum(wanted, room[every, chosen]).clamp(min=4)

    other = sample_scenes(num, generator)
    which = torch.randint(2, (num,), generator=generator)
    like = torch.rand(num, generator=generator) < 0.5

    def third(field: str) -> Tensor:
        copied, fresh = getattr(scenes, field)[every, which], getattr(other, field)[:, 0]
        return torch.where(like.view(-1, *(1,) * (fresh.ndim - 1)), copied, fresh)

    values = {field: third(field) for field in ("shape", "color", "surface", "rgb")}
    values |= {field: getattr(other, field)[:, 0] for field in ("tilt", "texture")}
    values |= {"center": places[every, chosen], "radius": radius}
    grown = {field: torch.cat([getattr(scenes, field), value[:, None]], dim=1) for field, value in values.items()}
    return replace(scenes, **grown)


def _place(radius: Tensor, relation: Tensor, generator: torch.Generator) -> Tensor:
    """Centres (B, 2, 2) of objects inside the picture that do not touch and fulfil the relation unambiguously."""
    num = len(radius)
    gap = 1.5
    slack = IMAGE_SIZE - 2 * radius.sum(1) - 3 * gap
    cuts = torch.rand(num, 2, generator=generator).sort(dim=1).values * slack[:, None]
    along_1 = gap + radius[:, 0] + cuts[:, 0]
    along_2 = along_1 + radius.sum(1) + gap + (cuts[:, 1] - cuts[:, 0])
    distance = along_2 - along_1

    def across(low: Tensor, high: Tensor) -> Tensor:
        return low + (high - low) * torch.rand(num, generator=generator)

    lowest, highest = radius + gap, IMAGE_SIZE - radius - gap
    across_1 = across(lowest[:, 0], highest[:, 0])
    # At most 0.7 of the distance sideways: otherwise both "left of" and "above" would be true.
    across_2 = across(
        torch.maximum(lowest[:, 1], torch.minimum(across_1 - 0.7 * distance, highest[:, 1])),
        torch.minimum(highest[:, 1], torch.maximum(across_1 + 0.7 * distance, lowest[:, 1])),
    )
    along, sideways = torch.stack([along_1, along_2], 1), torch.stack([across_1, across_2], 1)
    horizontal = (relation == 0)[:, None]
    x, y = torch.where(horizontal, along, sideways), torch.where(horizontal, sideways, along)
    return torch.stack([x, y], dim=-1)
