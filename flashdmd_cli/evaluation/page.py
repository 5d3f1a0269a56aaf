"""Pages: one HTML file each, which loads nothing from elsewhere.

A page is data: sections with paragraphs and exhibits (`exhibits.py`, `plots.py`). All HTML is in `templates/`: each
class of exhibit names the template that draws it, and `page.html` holds them together. Jinja2 escapes every text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flashdmd_cli.runs.files import write_text_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for a page: only what is in the page itself, and no script."""
MAX_TEXT = 300
"""Characters of a prompt that a page shows."""
KEPT = "\u200c\u200d"
"""Characters without a shape of their own that words and emoji need: joiners."""


class Exhibit(Protocol):
    """Something to look at: a table, pictures, a plot."""

    @property
    def template(self) -> str:
        """The file in `templates/` that draws it, under the name `exhibit`."""


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs (in which `code` is the only mark-up), and exhibits below them."""

    title: str
    paragraphs: Sequence[str] = ()
    exhibits: Sequence[Exhibit] = ()


@dataclass(frozen=True)
class Page:
    """The contents of a page, all of it as plain text and numbers."""

    title: str
    lead: str
    sections: Sequence[Section] = ()
    interactive: bool = False
    """Whether the page contains this package's script (`page.js`): values under the pointer, and sliders."""
    refresh: int | None = None
    """Seconds after which an interactive page loads itself again."""

    def html(self) -> str:
        """The whole document."""
        script = _text("page.js") if self.interactive else ""
        policy = f"{POLICY}; script-src {allowed(script.encode())}" if script else POLICY
        return render("page.html", page=self, policy=policy, style=_text("page.css"), script=script)


def write_page(path: Path, page: Page) -> Path:
    """Write the page; an interruption leaves the old file or the new one."""
    write_text_atomically(path, page.html())
    return path


def render(template: str, **values: Any) -> str:
    """A template with its values."""
    return environment().get_template(template).render(**values)


@cache
def environment() -> Environment:
    """The settings of all templates: everything is escaped, and an unknown name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=drawable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["short"] = short
    return found


def drawable(value: Any) -> Any:
    """A text without characters that draw nothing but break a page: controls, lone surrogates, and those that change
    the direction of the text after them. Any other value, and finished HTML, as it is."""
    if not isinstance(value, str) or hasattr(value, "__html__") or value.isprintable():
        return value
    return "".join(letter if letter.isprintable() or letter in KEPT else " " for letter in value)


def short(text: str) -> str:
    """The beginning of a long text, and how long it is."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text):,} characters)"


@cache
def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def allowed(script: bytes) -> str:
    """The source of a script in a content security policy: its hash, so that no other one runs."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode('ascii')}'"
