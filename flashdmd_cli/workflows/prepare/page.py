"""`report.html` of prepared data: counts of kept and rejected rows, histograms, and sample pictures."""

from __future__ import annotations

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from flashdmd_cli.data.assemble import Histogram, Summary
from flashdmd_cli.data.items import PICTURE_SUFFIXES, meaning
from flashdmd_cli.data.pictures import thumbnail
from flashdmd_cli.data.whole import read_tar
from flashdmd_cli.evaluation.page import Page, Section, write_page

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
                "".join(drawings(summary.histograms))),
        Section("Kept pictures", [], grid(kept_pictures(shards))),
        Section("Rejected pictures", ["A few for each reason, without files that cannot be decoded."],
                grid((shown.jpeg, shown.reason, shown.source) for shown in summary.rejected_pictures))
        if summary.rejected_pictures else None,
    ]  # fmt: skip
    page = Page("Prepared data", lead, [section for section in sections if section is not None])
    return write_page(path, page)


def counts(counted: Counter[str], of: int, meaning: Callable[[str], str]) -> str:
    """HTML table with the columns name, count, share of `of`, and meaning."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{count:,}</td><td>{count / max(of, 1):.2%}</td>"
        f'<td style="text-align:left">{html.escape(meaning(name))}</td></tr>'
        for name, count in counted.most_common()
    )
    return f'<div class="wide"><table>{rows}</table></div>' if rows else ""


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


def grid(pictures: Iterator[tuple[bytes, str, str]]) -> str:
    """HTML of thumbnails with a text below and a tooltip, from (JPEG or empty, text, tooltip)."""
    cells = []
    for jpeg, text, title in pictures:
        uri = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
        image = f'<img alt="" src="{uri}" style="width:112px;height:112px;object-fit:contain">' if jpeg else ""
        shortened = text if len(text) <= 90 else text[:89] + "…"
        cells.append(
            f'<figure style="width:112px;margin:0" title="{html.escape(title, quote=True)}">{image}'
            f'<figcaption style="font-size:.72rem;line-height:1.25;overflow-wrap:anywhere">{html.escape(shortened)}'
            "</figcaption></figure>"
        )
    return f'<div style="display:flex;flex-wrap:wrap;gap:14px">{"".join(cells)}</div>'


def drawings(histograms: Mapping[str, Histogram]) -> Iterator[str]:
    """HTML of one histogram per quantity: sizes, aspects and caption lengths first, then the columns."""
    yield '<div style="display:flex;flex-wrap:wrap;gap:18px">'
    for name in [*FIRST, *sorted(set(histograms) - set(FIRST))]:
        if name in histograms:
            yield drawing(name, histograms[name], logarithmic=name in LOGARITHMIC)
    yield "</div>"


def drawing(name: str, histogram: Histogram, logarithmic: bool) -> str:
    """A histogram as SVG; `logarithmic` selects a logarithmic x-axis."""

    def place(value: float) -> float:
        return math.log(value) if logarithmic else value

    def label(at: float) -> str:
        return f"{math.exp(at) if logarithmic else at:.3g}"

    values = [place(value) for value in (*histogram.kept, *histogram.rejected) if value > 0 or not logarithmic]
    low, high = min(values), max(values)
    # Columns may hold any number, up to the largest floats; halves keep sums and differences finite.
    if high / 2 - low / 2 <= 1e-9 * max(1, abs(low), abs(high)):
        margin = max(0.5, abs(low) / 100)
        low, high = low - margin, high + margin
    heights = [[0] * NUM_BINS, [0] * NUM_BINS]
    for bars, counted in zip(heights, (histogram.kept, histogram.rejected), strict=True):
        for value, count in counted.items():
            if value > 0 or not logarithmic:
                bars[min(NUM_BINS - 1, int((place(value) / 2 - low / 2) / (high / 2 - low / 2) * NUM_BINS))] += count
    top = max(1, *heights[0], *heights[1])
    step = WIDTH / NUM_BINS

    def bars_of(bars: list[int], style: str) -> str:
        return "".join(
            f'<rect x="{i * step + 1:.1f}" y="{HEIGHT - 2 - bar / top * (HEIGHT - 6):.1f}" width="{step - 2:.1f}" '
            f'height="{bar / top * (HEIGHT - 6):.1f}" {style}/>'
            for i, bar in enumerate(bars)
            if bar
        )

    return (
        f'<figure style="margin:0"><svg width="{WIDTH}" height="{HEIGHT + 18}" role="img" '
        f'aria-label="{html.escape(name, quote=True)}">'
        + bars_of(heights[0], 'fill="#0b66c3" fill-opacity=".75"')
        + bars_of(heights[1], 'fill="none" stroke="#b3402a"')
        + f'<line x1="0" x2="{WIDTH}" y1="{HEIGHT - 2}" y2="{HEIGHT - 2}" stroke="#5d6b7a"/>'
        f'<g font-size="11" fill="#5d6b7a"><text x="0" y="{HEIGHT + 12}">{label(low)}</text>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT + 12}" text-anchor="middle">{label(low / 2 + high / 2)}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 12}" text-anchor="end">{label(high)}</text></g></svg>'
        f"<figcaption>{html.escape(name)}, tallest bar {top:,}</figcaption></figure>"
    )
