"""The demo's page: one file, nothing loaded from elsewhere, everything escaped."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from flashdmd_cli.evaluation.page import Page, Section, curves, metric_table, picture_uri, pictures, write_page
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.workflows.demo.page import NAMES, demo_page

FIGURES = ("composition", "frechet", "high_frequency", "coverage", "diversity")


class Links(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe"):
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
    assert "<script" not in text
    assert list(tmp_path.iterdir()) == [tmp_path / "page.html"]


def test_page_says_everything(page):
    text = page.html()
    assert "1:15" in text and "50%" in text
    assert all(name in text for name in NAMES.values())
    assert text.count("<img ") == 8
    assert text.count("<svg") == 1
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
        pictures({"student": torch.zeros(2, 3, 4, 4)}, ["one"])


def test_table_marks_the_chosen_row_and_shows_intervals():
    rows = {"student": {"frechet": 1.25}, "teacher <x>": {"frechet": 2.0}}
    text = metric_table(rows, {"frechet": "Fréchet"}, {"student": {"frechet": (1.0, 1.5)}}, chosen="student")
    assert '<tr class="chosen"><td>student</td><td>1.250' in text
    assert "1 to 1.5" in text and "teacher &lt;x&gt;" in text


def test_curves_without_points_draw_nothing():
    assert curves({"loss": {"dm": []}}) == ""
    assert curves({}) == ""


def test_curves_are_the_same_for_the_same_figures():
    panels = {"loss": {"dm": [(0, 1.0), (1, 0.5)]}, "other": {"a": [(0, 1.0)], "b": [(0, 2.0)]}}
    assert curves(panels, "said") == curves(panels, "said")
    assert "<figcaption>said</figcaption>" in curves(panels, "said")


def test_paragraphs_know_code_and_nothing_else():
    text = Page("t", "l", [Section("s", ["run `flashdmd demo` <now>"])]).html()
    assert "run <code>flashdmd demo</code> &lt;now&gt;" in text


def test_write_replaces_whole(tmp_path: Path):
    path = tmp_path / "page.html"
    path.write_text("old")
    write_page(path, Page("new", "lead"))
    assert "new" in path.read_text(encoding="utf-8")
