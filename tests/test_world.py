"""The embedded world: captions say what is drawn, and what is drawn is what they say."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashdmd_cli.shapes.captions import WORDINGS, caption, captions, parse
from flashdmd_cli.shapes.counting import count_objects
from flashdmd_cli.shapes.render import masks, render
from flashdmd_cli.shapes.world import (
    ATTRIBUTES,
    COLORS,
    IMAGE_SIZE,
    NUM_COMBINATIONS,
    PALETTE,
    PATTERNS,
    RELATIONS,
    SHAPES,
    SURFACES,
    Scenes,
    add_object,
    attributes_of,
    combination_index,
    is_held_out,
    sample_attributes,
    sample_scenes,
)

EVERYTHING = attributes_of(torch.arange(NUM_COMBINATIONS))
rows = st.tuples(*(st.integers(0, len(values) - 1) for values in ATTRIBUTES.values())).map(list)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(2000, seeded(0))


@given(row=rows, wording=st.integers(0, 2))
@settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_captions_are_read_back(row: list[int], wording: int) -> None:
    assert parse(caption(torch.tensor(row), wording)) == row


def test_every_combination_has_its_own_caption() -> None:
    texts = captions(EVERYTHING)
    assert len(set(texts)) == NUM_COMBINATIONS == 18432
    assert [parse(text) for text in texts[::37]] == EVERYTHING[::37].tolist()


def test_caption_binds_each_word_to_its_object() -> None:
    row = [SHAPES.index("ring"), COLORS.index("red"), SURFACES.index("striped")]
    row += [SHAPES.index("square"), COLORS.index("blue"), SURFACES.index("plain"), RELATIONS.index("left")]
    text = "a striped red ring to the left of a plain blue square"
    assert caption(torch.tensor(row)) == text and parse(text) == row
    assert parse("a striped red ring on top of a plain blue square") == [*row[:6], RELATIONS.index("above")]
    assert parse(" an striped red ring left of a plain blue square\n") == row


def test_random_wordings_are_all_used_and_mean_the_same() -> None:
    attributes = sample_attributes(300, seeded(1))
    texts = captions(attributes, seeded(2))
    assert [parse(text) for text in texts] == attributes.tolist()
    for ways in WORDINGS.values():
        assert all(any(f" {way} a" in text for text in texts) for way in ways)
    assert texts == captions(attributes, seeded(2)) != captions(attributes, seeded(3))
    assert all(WORDINGS["left"][0] in t or WORDINGS["above"][0] in t for t in captions(attributes))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a red plain circle above a plain red circle",
        "a plain pink circle above a plain red circle",
        "a plain red circle below a plain red circle",
        "a plain red circle above a plain red circle and a dog",
        "a plain red circle",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a caption"):
        parse(text)


def test_index_and_attributes_are_inverse() -> None:
    assert torch.equal(combination_index(EVERYTHING), torch.arange(NUM_COMBINATIONS))
    assert len(EVERYTHING.unique(dim=0)) == NUM_COMBINATIONS
    assert (EVERYTHING.amax(0) + 1).tolist() == [len(values) for values in ATTRIBUTES.values()]


def test_a_tenth_is_held_out_of_every_attribute() -> None:
    held_out = is_held_out(EVERYTHING)
    assert abs(held_out.float().mean() - 0.1) < 0.005
    for column in EVERYTHING.unbind(1):
        for value in column.unique():
            share = held_out[column == value].float().mean()
            assert 0.07 < share < 0.13
    # Pairs of values too, so that no binding is learnt from the held-out tenth alone or never shown.
    for a, b in ((0, 1), (3, 4), (1, 4), (0, 3)):
        for pair in EVERYTHING[:, [a, b]].unique(dim=0):
            share = held_out[(EVERYTHING[:, [a, b]] == pair).all(1)].float().mean()
            assert 0.02 < share < 0.25


def test_training_never_shows_what_is_held_out() -> None:
    training = combination_index(sample_attributes(50_000, seeded(0))).unique()
    held_out = combination_index(sample_attributes(20_000, seeded(0), held_out=True)).unique()
    assert not set(training.tolist()) & set(held_out.tolist())
    assert not is_held_out(attributes_of(training)).any() and is_held_out(attributes_of(held_out)).all()
    # Between them they show nearly everything: nothing is lost.
    assert len(training) + len(held_out) > 0.93 * NUM_COMBINATIONS
    assert is_held_out(sample_scenes(200, seeded(1), held_out=True).attributes).all()
    assert not is_held_out(sample_scenes(200, seeded(1)).attributes).any()


def test_given_attributes_are_kept_and_the_rest_is_free() -> None:
    attributes = EVERYTHING[5:6].repeat(50, 1)
    scenes = sample_scenes(50, seeded(0), attributes=attributes)
    assert torch.equal(scenes.attributes, attributes)
    assert len(scenes.center.flatten(1).unique(dim=0)) == 50 and scenes.pattern.unique().numel() == len(PATTERNS)


def test_relation_holds_unambiguously(scenes: Scenes) -> None:
    x, y = (scenes.center[:, 1] - scenes.center[:, 0]).unbind(1)
    along = torch.where(scenes.relation == RELATIONS.index("left"), x, y)
    sideways = torch.where(scenes.relation == RELATIONS.index("left"), y, x)
    assert (along > 0).all()
    assert (sideways.abs() < along).all()  # nearer to the axis it names than to the other
    assert set(scenes.relation.tolist()) == {0, 1}


def test_objects_are_inside_the_picture_and_do_not_touch(scenes: Scenes) -> None:
    reach = scenes.radius[:, :, None]
    assert (scenes.center - reach >= 0).all() and (scenes.center + reach <= IMAGE_SIZE).all()
    assert ((scenes.center[:, 0] - scenes.center[:, 1]).norm(dim=1) > scenes.radius.sum(1)).all()


def test_drawn_objects_neither_overlap_nor_leave_the_picture(scenes: Scenes) -> None:
    """The same for the pixels: corners of squares and triangles reach beyond the radius."""
    covered = masks(scenes[:500])
    assert covered.shape == (500, 2, IMAGE_SIZE, IMAGE_SIZE) and covered.dtype == torch.bool
    assert (covered.sum((2, 3)) > 100).all()
    overlap = covered.all(1).sum((1, 2))
    assert overlap.max() == 0
    border = torch.ones(IMAGE_SIZE, IMAGE_SIZE, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert not (covered & border).any()


def test_relation_is_seen_in_the_masks(scenes: Scenes) -> None:
    covered = masks(scenes[:300]).float()
    axis = torch.arange(IMAGE_SIZE) + 0.5
    weight = covered.sum((2, 3))
    x, y = (covered.sum(2) * axis).sum(2) / weight, (covered.sum(3) * axis).sum(2) / weight
    dx, dy = x[:, 1] - x[:, 0], y[:, 1] - y[:, 0]
    assert torch.equal(torch.where(dx.abs() > dy.abs(), 0, 1), scenes.relation[:300])
    assert (torch.where(scenes.relation[:300] == 0, dx, dy) > 0).all()


def test_render_is_a_function_of_scene_and_generator(scenes: Scenes) -> None:
    few = scenes[:32]
    pictures = render(few, seeded(3))
    assert pictures.shape == (32, 3, IMAGE_SIZE, IMAGE_SIZE) and pictures.dtype == torch.float32
    assert pictures.min() >= -1 and pictures.max() <= 1 and pictures.max() > 0.8 and pictures.min() < -0.8
    assert torch.equal(pictures, render(few, seeded(3)))
    other = render(few, seeded(4))  # the generator draws the grain and nothing else
    assert not torch.equal(pictures, other)
    assert (pictures - other).std() < 0.05
    again = sample_scenes(2000, seeded(0))
    assert torch.equal(pictures, render(again[:32], seeded(3)))


def test_objects_have_the_colour_that_is_named(scenes: Scenes) -> None:
    """Plain objects well inside their outline: the nearest colour of the palette is the one in the caption."""
    plain = scenes[(scenes.surface == 0).all(1) & (scenes.shape != SHAPES.index("ring")).all(1)][:100]
    pictures = (render(plain, seeded(0)) + 1) / 2
    for which in (0, 1):
        x, y = plain.center[:, which].long().unbind(1)
        places = zip(pictures, x, y, strict=True)
        color = torch.stack([p[:, j - 1 : j + 2, i - 1 : i + 2].mean((1, 2)) for p, i, j in places])
        assert torch.equal(torch.cdist(color, PALETTE).argmin(1), plain.color[:, which])


def test_shapes_and_surfaces_look_different(scenes: Scenes) -> None:
    one = scenes[torch.zeros(12, dtype=torch.long)]
    shape = torch.arange(4).repeat(3)[:, None].repeat(1, 2)
    surface = torch.arange(3).repeat_interleave(4)[:, None].repeat(1, 2)
    looks = Scenes(**{**vars(one), "shape": shape, "surface": surface})
    pictures = render(looks, seeded(0)).flatten(1)
    distance = torch.cdist(pictures, pictures) + 100 * torch.eye(12)
    assert distance.min() > 3  # grain alone makes about 1
    assert masks(looks)[:4].flatten(1).unique(dim=0).shape[0] == 4


def test_free_fields_are_spread_over_their_range(scenes: Scenes) -> None:
    share = Counter(scenes.pattern.tolist())
    assert all(abs(share[i] / 2000 - 0.25) < 0.04 for i in range(len(PATTERNS)))
    for axis in (0, 1):
        assert scenes.center[..., axis].std() > 8
    assert scenes.radius.min() < 10.7 and scenes.radius.max() > 13.8


def test_a_further_object_leaves_the_two_of_the_caption_alone(scenes: Scenes) -> None:
    grown = add_object(scenes, seeded(4))
    assert torch.equal(grown.attributes, scenes.attributes) and grown.center.shape == (2000, 3, 2)
    apart = torch.cdist(grown.center[:, 2:], scenes.center)[:, 0] - scenes.radius - grown.radius[:, 2:]
    assert (apart > 0).float().mean() > 0.999
    third = torch.stack([grown.shape, grown.color, grown.surface], dim=-1)
    copies = (third[:, 2:] == third[:, :2]).all(dim=2).any(dim=1).float().mean().item()
    assert 0.45 < copies < 0.58


def test_objects_are_counted(scenes: Scenes) -> None:
    two = count_objects(render(scenes, seeded(5)))
    three = count_objects(render(add_object(scenes, seeded(6)), seeded(5)))
    assert (two == 2).float().mean() > 0.9 and (two > 2).float().mean() < 0.005
    assert (three == 3).float().mean() > 0.8 and (three > 3).float().mean() < 0.005
    assert count_objects(torch.zeros(3, 3, 64, 64)).tolist() == [0, 0, 0]
