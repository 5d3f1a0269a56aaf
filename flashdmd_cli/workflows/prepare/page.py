"""`report.html` of prepared data: counts of kept and rejected rows, histograms, and sample pictures."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from flashdmd_cli.data.assemble import Histogram, Summary
from flashdmd_cli.data.items import PICTURE_SUFFIXES, meaning
from flashdmd_cli.data.pictures import thumbnail
from flashdmd_cli.data.whole import read_tar
from flashdmd_cli.evaluation.exhibits import Card, Cards, Cell, Table, data_uri
from flashdmd_cli.evaluation.page import Exhibit, Page, Section, write_page
from flashdmd_cli.evaluation.plots import Bars, Plots, Titled, histogram

NUM_SHOWN = 36
NUM_BINS = 30
WIDTH, HEIGHT = 320, 130
FIRST = ("short side", "aspect", "caption length")
LOGARITHMIC = ("short side", "aspect", "caption length")
NOTES = {
    "exif": "rotated according to EXIF",
    "cmyk": "converted from CMYK",
    "16 bit": "converted from 16 to 8 bits per channel",
    "alpha": "transparent, composited on white",
    "animated": "first frame of an animation",
    "profile": "converted to sRGB from their colour profile",
    "enlarged": "enlarged, since smaller than the target",
}
"""Name of a conversion -> description."""


def write_report(path: Path, summary: Summary, shards: Sequence[Path], source: str) -> Path:
    """Write the page as one self-contained file, with embedded pictures and plots."""
    share = summary.kept / summary.seen
    lead = f"{summary.kept:,} of {summary.seen:,} rows of {source} are kept ({share:.1%})."
    sections = [
        Section("Rejected rows", ["Counted under the first reason."] if summary.rejected else ["None."],
                counts(summary.rejected, summary.seen, meaning)),
        Section("Converted pictures", [],
                counts(summary.notes, summary.kept, NOTES.__getitem__)) if summary.notes else None,
        Section("Distributions", ["Filled: kept. Outlined: rejected, as far as the value is known."],
                [Plots(histograms(summary.histograms))]),
        Section("Kept pictures", [], [grid(kept_pictures(shards))]),
        Section("Rejected pictures", ["A few for each reason, without files that cannot be decoded."],
                [grid((shown.jpeg, shown.reason, shown.source) for shown in summary.rejected_pictures)])
        if summary.rejected_pictures else None,
    ]  # fmt: skip
    page = Page("Prepared data", lead, [section for section in sections if section is not None])
    return write_page(path, page)


def counts(counted: Counter[str], of: int, meaning: Callable[[str], str]) -> list[Exhibit]:
    """A table of name, count, share of `of`, and meaning; none if nothing was counted."""
    rows = [
        [Cell(name, meaning(name)), Cell(f"{count:,}"), Cell(f"{count / max(of, 1):.2%}")]
        for name, count in counted.most_common()
    ]
    return [Table([], rows)] if rows else []


def kept_pictures(shards: Sequence[Path]) -> Iterator[tuple[bytes, str, str]]:
    """(Thumbnail, caption, key) of a few pictures from each of up to nine evenly spaced shards."""
    chosen = [shards[len(shards) * i // min(len(shards), 9)] for i in range(min(len(shards), 9))]
    per_shard = -(-NUM_SHOWN // max(len(chosen), 1))
    shown = 0
    for shard in chosen:
        taken = 0
        for key, members in read_tar(shard):
            data = next((data for kind, data in members.items() if kind in PICTURE_SUFFIXES), None)
            if taken == per_shard or shown == NUM_SHOWN:
                break
            taken, shown = taken + 1, shown + 1
            yield small(data) if data else b"", members["txt"].decode(), key


def small(data: bytes) -> bytes:
    """A JPEG thumbnail of a picture in a shard."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return thumbnail(image)


def grid(pictures: Iterable[tuple[bytes, str, str]]) -> Cards:
    """Thumbnails with a text below and a tooltip, from (JPEG or empty, text, tooltip)."""
    return Cards(
        [Card(text, [("", data_uri(jpeg, "jpeg") if jpeg else "no picture")], title) for jpeg, text, title in pictures]
    )


def histograms(found: Mapping[str, Histogram]) -> list[Titled]:
    """One histogram per quantity: sizes, aspects and caption lengths first, then the columns.

    A logarithmic axis has no place for zero: a quantity without any other value is left out.
    """
    names = [name for name in (*FIRST, *sorted(set(found) - set(FIRST))) if name in found]
    drawn = [
        name
        for name in names
        if name not in LOGARITHMIC or any(v > 0 for v in (*found[name].kept, *found[name].rejected))
    ]
    return [drawing(name, found[name], logarithmic=name in LOGARITHMIC) for name in drawn]


def drawing(name: str, found: Histogram, logarithmic: bool) -> Titled:
    """A histogram of kept (filled) and rejected (outlined) rows; `logarithmic` selects a logarithmic x-axis."""

    def place(value: float) -> float:
        return math.log(value) if logarithmic else value

    def label(at: float) -> str:
        return f"{math.exp(at) if logarithmic else at:.3g}"

    values = [place(value) for value in (*found.kept, *found.rejected) if value > 0 or not logarithmic]
    low, high = min(values), max(values)
    # Columns may hold any number, up to the largest floats; halves keep sums and differences finite.
    if high / 2 - low / 2 <= 1e-9 * max(1, abs(low), abs(high)):
        margin = max(0.5, abs(low) / 100)
        low, high = low - margin, high + margin
    heights: dict[str, list[float]] = {"bar": [0] * NUM_BINS, "outline": [0] * NUM_BINS}
    for bars, counted in zip(heights.values(), (found.kept, found.rejected), strict=True):
        for value, count in counted.items():
            if value > 0 or not logarithmic:
                bars[min(NUM_BINS - 1, int((place(value) / 2 - low / 2) / (high / 2 - low / 2) * NUM_BINS))] += count
    top = max(1, *heights["bar"], *heights["outline"])
    middle = label(low / 2 + high / 2)
    ticks = [(0.0, "start", label(low)), (WIDTH / 2, "middle", middle), (WIDTH, "end", label(high))]
    series = {kind: histogram(bars, top, (WIDTH, HEIGHT)) for kind, bars in heights.items()}
    return Titled(name, [Bars(f"tallest bar {top:,.0f}", (WIDTH, HEIGHT), series, ticks=ticks)])
