"""The page that a demo leaves: one HTML file with text, curves, pictures and a table; it loads nothing."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.runs.files import write_text_atomically

if TYPE_CHECKING:
    from torch import Tensor

STYLE = """
:root { --ink: #1c2530; --soft: #5d6b7a; --line: #dfe5ec; --paper: #ffffff; --ground: #f4f6f9; --mark: #0b66c3; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; margin: 0 0 .6rem; }
p, li { max-width: 46rem; }
.lead { font-size: 1.12rem; color: var(--soft); margin: 0 0 2rem; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 14px; padding: 1.5rem 1.7rem;
          margin: 0 0 1.4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
thead th { color: var(--soft); font-weight: 600; font-size: .88rem; }
tr.chosen td { background: #eef5fd; font-weight: 600; }
.small { color: var(--soft); font-size: .85rem; font-weight: 400; }
.pictures td, .pictures th { padding: .3rem; border: 0; text-align: center; vertical-align: middle; }
.pictures th:first-child { text-align: left; white-space: normal; min-width: 7.5rem; padding-right: .6rem; }
.pictures img { width: 96px; height: 96px; border-radius: 6px; image-rendering: pixelated;
                display: block; margin: auto; }
.pictures .caption { font-size: .72rem; line-height: 1.25; width: 96px; white-space: normal; color: var(--soft);
                     font-weight: 400; vertical-align: top; }
figure { margin: 1rem 0 0; }
figure svg { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem; }
code { background: var(--ground); border-radius: 5px; padding: .1rem .35rem; font-size: .88em;
       overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and at most one exhibit of finished HTML below them."""

    title: str
    paragraphs: Sequence[str] = ()
    exhibit: str = ""


@dataclass(frozen=True)
class Page:
    """Everything a page says. Texts are plain and are escaped here; exhibits come from the functions below."""

    title: str
    lead: str
    sections: Sequence[Section] = field(default_factory=tuple)

    def html(self) -> str:
        """The whole document."""
        body = [f"<h1>{html.escape(self.title)}</h1>", f'<p class="lead">{html.escape(self.lead)}</p>']
        for section in self.sections:
            texts = "".join(f"<p>{_inline(text)}</p>" for text in section.paragraphs)
            body.append(f"<section><h2>{html.escape(section.title)}</h2>{texts}{section.exhibit}</section>")
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style></head>"
            f"<body><main>{''.join(body)}</main></body></html>\n"
        )


def write_page(path: Path, page: Page) -> Path:
    """Write the page whole or not at all."""
    write_text_atomically(path, page.html())
    return path


def _inline(text: str) -> str:
    # `code` between backticks is the only mark-up of a paragraph.
    parts = [html.escape(part) for part in text.split("`")]
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def picture_uri(picture: Tensor) -> str:
    """A picture (3, H, W) on [-1, 1] as a PNG data URI."""
    from flashdmd_cli.evaluation.pictures import to_image

    stream = io.BytesIO()
    to_image(picture).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def picture_file(path: Path, title: str) -> str:
    """A PNG file as it is, in the page itself."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<div class="wide"><img alt="{html.escape(title, quote=True)}" src="data:image/png;base64,{data}"></div>'


def pictures(rows: Mapping[str, Tensor], captions: Sequence[str]) -> str:
    """Pictures side by side: a row per sampler, a column per caption; each value is (N, 3, H, W) on [-1, 1]."""
    heads = "".join(f'<td class="caption">{html.escape(caption)}</td>' for caption in captions)
    lines = []
    for name, batch in rows.items():
        if len(batch) != len(captions):
            raise ValueError(f"{name}: {len(batch)} pictures for {len(captions)} captions")
        cells = (
            f'<td><img alt="{html.escape(f"{name}: {caption}", quote=True)}" src="{picture_uri(picture)}"></td>'
            for picture, caption in zip(batch, captions, strict=True)
        )
        lines.append(f"<tr><th>{html.escape(name)}</th>{''.join(cells)}</tr>")
    return f'<div class="wide"><table class="pictures"><tr><th></th>{heads}</tr>{"".join(lines)}</table></div>'


def metric_table(
    rows: Mapping[str, Mapping[str, float]],
    columns: Mapping[str, str],
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    chosen: str | None = None,
) -> str:
    """A row per sampler and a column per metric; `columns` maps a metric's key to its heading.

    `intervals` adds a 95% interval below a figure; the row named `chosen` is marked.
    """

    def cell(name: str, key: str) -> str:
        if key not in rows[name]:
            return "<td></td>"
        low_high = (intervals or {}).get(name, {}).get(key)
        below = f'<br><span class="small">{low_high[0]:.3g} to {low_high[1]:.3g}</span>' if low_high else ""
        return f"<td>{rows[name][key]:.3f}{below}</td>"

    head = "".join(f"<th>{html.escape(text)}</th>" for text in columns.values())
    body = "".join(
        f"<tr{' class=' + chr(34) + 'chosen' + chr(34) if name == chosen else ''}><td>{html.escape(name)}</td>"
        + "".join(cell(name, key) for key in columns)
        + "</tr>"
        for name in rows
    )
    return f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def curves(panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], caption: str = "") -> str:
    """Line plots as one inline SVG: panel title -> name of the line -> (iteration, value) pairs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = {title: {k: v for k, v in lines.items() if v} for title, lines in panels.items()}
    shown = {title: lines for title, lines in shown.items() if lines}
    if not shown:
        return ""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "flashdmd", "font.family": "sans-serif", "font.size": 9}
    with pyplot.rc_context(settings):
        num_columns = min(3, len(shown))
        num_rows = -(-len(shown) // num_columns)
        figure, axes = pyplot.subplots(
            num_rows, num_columns, figsize=(3.6 * num_columns, 2.5 * num_rows), squeeze=False
        )
        for axis in axes.flat[len(shown) :]:
            axis.set_visible(False)
        for axis, (title, lines) in zip(axes.flat, shown.items(), strict=False):
            for name, points in lines.items():
                # A single point has no line to be seen by.
                axis.plot(*zip(*points, strict=True), label=name, linewidth=1.4, marker="." if len(points) == 1 else "")
            axis.set_title(title, fontsize=10, loc="left")
            axis.set_xlabel("iteration")
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            if len(lines) > 1:
                axis.legend(frameon=False, fontsize=8)
        figure.tight_layout()
        stream = io.StringIO()
        silent: dict[str, None] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=silent)
        pyplot.close(figure)
    drawn = stream.getvalue()
    return f"<figure>{drawn[drawn.index('<svg') :]}<figcaption>{_inline(caption)}</figcaption></figure>"
