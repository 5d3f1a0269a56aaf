"""Pages: one HTML file each, with text, curves, pictures and tables; it loads nothing and runs no script."""

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

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for a page: nothing but what stands in it, and no script."""
MAX_TEXT = 300
"""Characters of a prompt that a page shows."""
KEPT = "\u200c\u200d"
"""Characters without a shape of their own that words and emoji need: joiners."""


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
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
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


def escaped(text: str) -> str:
    """A text from outside (a prompt, a name, a reason) as HTML: shortened, and without characters that draw nothing but
    break a page: controls, lone surrogates, and those that turn the direction of the text after them."""
    cut = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text):,} characters)"
    drawn = "".join(letter if letter.isprintable() or letter in KEPT else " " for letter in cut)
    return html.escape(drawn, quote=True)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a text, and a smaller one below it."""

    text: str
    below: str = ""
    kind: str = ""
    """`good` or `bad`: the colour of the text."""


def table(
    heads: Sequence[str], rows: Sequence[Sequence[Cell | str]], style: str = "stuck", published: Sequence[int] = ()
) -> str:
    """A table of plain texts; `style` is `stuck` (the first column stays while others scroll) or `text` (it wraps).

    `published` lists the rows that are not this project's own values.
    """

    def drawn(each: Cell | str) -> str:
        found = Cell(each) if isinstance(each, str) else each
        text = escaped(found.text).replace("_", "_<wbr>")  # a name may be broken there
        below = f'<br><span class="small">{escaped(found.below)}</span>' if found.below else ""
        return f"<td{f' class={chr(34)}{found.kind}{chr(34)}' if found.kind else ''}>{text}{below}</td>"

    head = "".join(f"<th>{escaped(text).replace('_', '_<wbr>')}</th>" for text in heads)
    body = "".join(
        f"<tr{' class=' + chr(34) + 'published' + chr(34) if i in published else ''}>{''.join(map(drawn, row))}</tr>"
        for i, row in enumerate(rows)
    )
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="wide"><table class="{style}">{top}<tbody>{body}</tbody></table></div>'


def heading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escaped(text)}</h3>"


def folded(title: str, exhibit: str) -> str:
    """An exhibit that is shown on a click on its title."""
    return f"<details><summary>{escaped(title)}</summary>{exhibit}</details>"


@dataclass(frozen=True)
class Card:
    """A prompt with one or more pictures of it."""

    prompt: str
    pictures: Sequence[tuple[str, str]]
    """(caption, data URI); a text in place of the URI says why there is no picture."""


def cards(shown: Sequence[Card]) -> str:
    """Prompts with their pictures, as many beside each other as the screen is wide."""

    def shot(caption: str, uri: str, prompt: str) -> str:
        if uri.startswith("data:"):
            kind = ' class="tiny"' if uri.startswith("data:image/png") else ""
            picture = f'<img{kind} loading="lazy" alt="{escaped(prompt)}" src="{uri}">'
        else:
            picture = f'<div class="none">{escaped(uri)}</div>'
        return f'<figure class="shot">{picture}<figcaption>{escaped(caption)}</figcaption></figure>'

    def drawn(each: Card) -> str:
        shots = "".join(shot(caption, uri, each.prompt) for caption, uri in each.pictures)
        return f'<div class="card"><div class="shots">{shots}</div><p class="prompt">{escaped(each.prompt)}</p></div>'

    pairs = " pairs" if any(len(each.pictures) > 1 for each in shown) else ""
    return f'<div class="cards{pairs}">{"".join(map(drawn, shown))}</div>'


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

    `intervals` adds a 95% interval below a value; the row named `chosen` is marked.
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
