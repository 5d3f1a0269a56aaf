"""Captions, names and texts of others in every page: they are shown, and nothing of them runs or is loaded."""

# ruff: noqa: F811 (pytest finds fixtures by the names of arguments)

from __future__ import annotations

import html

from .hostile_pages import HOSTILE, NAME, dangers, in_folder
from .test_cli import shipped, world  # noqa: F401
from .test_distill import sam_folder  # noqa: F401


def test_no_page_has_anything_of_theirs_that_could_run(world, shipped):
    pages = in_folder(world, shipped / "shapes-sdxl", shipped / "shapes-sam")
    assert pages.keys() == {"run", "data", "demo", "evaluation", "comparison"}
    for kind, path in pages.items():
        text = path.read_text(encoding="utf-8")
        assert dangers(text) == [], kind
        assert NAME not in text and HOSTILE[0] not in text, kind
        assert "onerror=document" in html.unescape(text), kind  # it is shown


def test_the_check_finds_what_it_looks_for():
    for text in (HOSTILE[1], HOSTILE[2], HOSTILE[3], HOSTILE[6], "<link rel=x>", "<img src=http://x>"):
        assert len(dangers(f"<p>{text}</p>")) > 1, text
