"""Pages, and that of the demo: one file, nothing loaded from elsewhere, everything escaped."""

from __future__ import annotations

import base64
import io
import math
import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from flashdmd_cli.data.assemble import Histogram
from flashdmd_cli.evaluation.envelope import MAX_COLUMNS, Envelope
from flashdmd_cli.evaluation.exhibits import Folded, Pictures, Preformatted, Table, metric_table, picture_uri
from flashdmd_cli.evaluation.page import TEMPLATES, Exhibit, Page, Section, render, write_page
from flashdmd_cli.evaluation.plots import Plot, round_values
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.workflows.demo.page import NAMES, demo_page
from flashdmd_cli.workflows.prepare.page import histograms

FIGURES = ("composition", "frechet", "high_frequency", "coverage", "diversity")


class Links(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("link", "iframe", "object", "embed"):
            self.found.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]


def external(text: str) -> list[str]:
    parser = Links()
    parser.feed(text)
    urls = parser.found + re.findall(r"url\(([^)]*)\)", text)
    return [url for url in urls if not url.strip("\"'").startswith(("data:", "#"))]


def row() -> dict[str, object]:
    return {
        **dict.fromkeys(FIGURES, 0.5),
        "num_pictures": 16,
        "intervals": {name: [0.4, 0.6] for name in FIGURES},
    }


def drawn(exhibit: Exhibit) -> str:
    return render(exhibit.template, exhibit=exhibit)


@pytest.fixture
def page() -> Page:
    log = [{"step": i, "dm": 1 / (i + 1), "fake": 0.5, "gan": None, "discriminator": 2.0} for i in range(5)]
    drawn = {name: torch.rand(2, 3, 8, 8) * 2 - 1 for name in NAMES}
    captions = ["a plain red circle above a blue ring", 'a "<b>bold</b>" caption']
    return demo_page(
        load_recipe("shapes-4step"), {name: row() for name in (*NAMES, "real")}, drawn, captions, log, 75.0
    )


def test_page_loads_nothing_from_elsewhere(page, tmp_path):
    text = write_page(tmp_path / "page.html", page).read_text(encoding="utf-8")
    assert external(text) == []
    assert "<script" not in text and "script-src" not in text
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]


def test_page_says_everything(page):
    text = page.html()
    assert "1:15" in text and "50%" in text
    assert all(name in text for name in NAMES.values())
    assert text.count("<img ") == 8
    assert text.count("<svg") == 3  # a plot each for dm, fake and discriminator; gan has no values
    assert "999, 749, 499, 249" in text
    assert "<b>bold</b>" not in text and "&lt;b&gt;bold" in text


def test_picture_survives_the_way_into_the_page():
    picture = torch.rand(3, 5, 7) * 2.4 - 1.2
    kind, data = picture_uri(picture).split(",", 1)
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (7, 5)
    wanted = ((picture.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).flatten().int().tolist()
    assert list(image.tobytes()) == wanted


def test_number_of_pictures_must_fit_the_captions():
    with pytest.raises(ValueError, match="2 pictures for 1 captions"):
        Pictures.of({"student": torch.zeros(2, 3, 4, 4)}, ["one"])


def test_table_marks_the_chosen_row_and_shows_intervals():
    rows = {"student": {"frechet": 1.25}, "teacher <x>": {"frechet": 2.0}}
    text = drawn(metric_table(rows, {"frechet": "Fréchet"}, {"student": {"frechet": (1.0, 1.5)}}, chosen="student"))
    assert '<tr class="chosen"><td>student</td><td>1.250' in text
    assert "1 to 1.5" in text and "teacher &lt;x&gt;" in text


def test_every_template_escapes_and_a_missing_value_is_an_error():
    """A template with `|safe` on a text, or without autoescape, would let a prompt write on the page."""
    hostile = "<script>alert(1)</script>\u202e"
    exhibits: list[Exhibit] = [Table([hostile], [[hostile]]), Preformatted(f"a\n{hostile}")]
    text = Page(hostile, hostile, [Section(hostile, [hostile], [Folded(hostile, exhibits), *exhibits])]).html()
    assert "<script" not in text and "\u202e" not in text and text.count("&lt;script&gt;") == 12
    assert "a\n&lt;" in text  # lines are kept
    assert {path.name for path in TEMPLATES.glob("*.html") if "| safe" in path.read_text()} == {"page.html"}
    with pytest.raises(Exception, match="undefined"):
        render("table.html")


def test_only_the_script_of_the_package_may_run():
    text = Page("t", "l", interactive=True, refresh=7).html()
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in text and 'data-refresh="7"' in text
    assert "default-src &#39;none&#39;" in text


def test_no_code_builds_html():
    """Tags in Python strings would bypass the escaping of the templates."""
    tag = re.compile(r"</?(div|p|br|span|table|t[rdh]|svg|rect|img|figure|section|style|h\d)[ >/]")
    package = TEMPLATES.parents[1]
    found = [path.name for path in package.rglob("*.py") if tag.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_histograms_of_prepared_data():
    values, empty = Histogram(), Histogram()
    for value, kept in ((1.0, True), (1.0, True), (100.0, False)):
        values.add(value, kept)
    empty.add(0.0, True)
    found = {"short side": values, "caption length": empty, "aesthetic": empty}
    # A logarithmic axis has no place for a quantity that is zero everywhere.
    assert [each.title for each in histograms(found)] == ["short side", "aesthetic"]
    text = drawn(histograms(found)[0])
    assert text.count('class="bar"') == text.count('class="outline"') == 1 and "tallest bar 2" in text
    assert ">10</text>" in text  # the middle of a logarithmic axis from 1 to 100


def test_envelope_keeps_every_extreme_in_few_columns():
    values = [math.sin(i / 500) for i in range(100_000)]
    values[77_777], values[3] = 9.0, float("nan")
    envelope = Envelope(enumerate(values))
    columns = envelope.columns()
    assert MAX_COLUMNS / 2 <= len(columns) <= MAX_COLUMNS and envelope.width == 512
    assert max(each.high for each in columns) == 9.0 and min(each.low for each in columns) == min(values)
    assert columns[-1].last == values[-1] and [each.step for each in columns] == sorted(each.step for each in columns)
    count = [min(512, 100_000 - 512 * i) for i in range(len(columns))]
    assert sum(each.mean * n for each, n in zip(columns, count, strict=True)) == pytest.approx(
        sum(value for value in values if value == value), abs=1
    )
    sparse = Envelope((1000 * i, float(i)) for i in range(50))
    assert [each.mean for each in sparse.columns()] == list(range(50)) and sparse.width == 1


def test_plot_puts_values_where_they_belong():
    plot = Plot("loss", {"a": Envelope([(0, 1.0), (10, 3.0)]), "none": Envelope()}, band=(-math.inf, 2.0))
    line = plot.lines[0]
    points = [tuple(map(float, point.split())) for point in line.mean[1:].split("L")]
    assert points[0][0] == plot.left and points[1][0] == plot.right and points[0][1] > plot.y(2.0) > points[1][1]
    assert [each.name for each in plot.lines] == ["a"] and line.envelope == "" and line.latest == "3"
    assert {tick.text: tick.at for tick in plot.ticks_y}["2"] == plot.y(2.0)
    assert plot.y(-math.inf) == plot.bottom and 'class="band"' in drawn(plot)
    one = Plot("one", {"a": Envelope([(5, 2.0)])})
    assert one.lines[0].dot == (one.x(5), one.y(2.0)) and "<circle" in drawn(one)
    wide = Plot("wide", {"a": Envelope([(0, 0.001), (1, 1.0), (2, 1000.0)])})
    assert wide.is_logarithmic and wide.y(1.0) == pytest.approx((wide.y(0.001) + wide.y(1000.0)) / 2, abs=0.1)
    assert round_values(0.0, 1.0, 4) == [0.0, 0.25, 0.5, 0.75, 1.0] and round_values(3.0, 99_000.0, 4)[0] == 25_000


def test_paragraphs_know_code_and_nothing_else():
    text = Page("t", "l", [Section("s", ["run `flashdmd demo` <now>"])]).html()
    assert "run <code>flashdmd demo</code> &lt;now&gt;" in text


def test_write_replaces_whole(tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text("old")
    write_page(path, Page("new", "lead"))
    assert "new" in path.read_text(encoding="utf-8")
