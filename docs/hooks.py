"""Hooks of MkDocs: pages that are generated when the site is built.

The home page is the README, the contribution rules are CONTRIBUTING.md, the reference comes from the command line and
from the recipe classes, and the research log lists the files of `docs/log/`, newest first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[1]
LOG = "Research log"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the research log to the navigation."""
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in sorted((ROOT / "docs" / "log").glob("*.md"))]
    config.nav = [*(config.nav or []), {LOG: pages[::-1]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {
        "index.md": at_top("README.md"),
        "contributing.md": at_top("CONTRIBUTING.md"),
        "reference/commands.md": commands(),
        "reference/recipes.md": recipes(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to folders and to code, which a reader of the repository can open, are plain text on the site."""
    here = Path(page.file.abs_src_path).parent if page.file.abs_src_path else ROOT / "docs"

    def link(found: re.Match[str]) -> str:
        target = (here / found[2]).resolve()
        published = target.is_file() and target.is_relative_to(ROOT / "docs") and "experiments" not in target.parts
        return found[1] if target.exists() and not published else found[0]

    return re.sub(r"\[([^\]]*)\]\(([^):#\s]+)\)", link, markdown)


def at_top(name: str) -> str:
    """A page of the top level, with links as they are from `docs/`."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return text.replace("](docs/", "](").replace("](CONTRIBUTING.md)", "](contributing.md)")


def commands() -> str:
    """Every command with its arguments and options."""
    from typer.main import get_command

    from flashdmd_cli.cli.app import app

    parts = ["# Commands", "Generated from the command line; `flashdmd COMMAND --help` prints the same."]
    return "\n\n".join([*parts, *command_parts(get_command(app), "flashdmd")]) + "\n"


def command_parts(command: Any, path: str) -> Iterator[str]:
    """The section of a command, and those of its subcommands."""
    subcommands = getattr(command, "commands", {})
    if path != "flashdmd":
        yield f"## {path}"
        yield text_of(command.help)
    own = [param for param in command.params if not getattr(param, "hidden", False) and param.name != "help"]
    if own and path != "flashdmd":
        rows = [
            f"| {names(param)} | {cell(getattr(param, 'help', None) or '')} | {default_of(param)} |" for param in own
        ]
        yield "\n".join(["| option | meaning | default |", "|---|---|---|", *rows])
    for name, each in subcommands.items():
        if not each.hidden:
            yield from command_parts(each, f"{path} {name}")


def names(param: Any) -> str:
    """`--seed INTEGER`, or `SOURCE` for an argument."""
    annotation = param.type_descriptor.annotation
    value = param.metavar or getattr(annotation, "__name__", "value").upper()
    if param.param_type_name == "argument":
        return f"`{param.metavar or param.name.upper()}`"
    kind = "" if annotation is bool else f" {value}"
    return ", ".join(f"`{name}{kind}`" for name in (*param.opts, *param.secondary_opts))


def default_of(param: Any) -> str:
    """The default, where it is a plain value."""
    shown = param.default
    return f"`{shown}`" if isinstance(shown, (str, int, float)) and not isinstance(shown, bool) else ""


def recipes() -> str:
    """Every field of both recipe classes, and the recipes that come with the package."""
    from flashdmd_cli.runs.recipe import RECIPES, list_recipes
    from flashdmd_cli.runs.recipe_schema import Recipe
    from flashdmd_cli.runs.reward_schema import RewardRecipe

    parts = ["# Recipes", "Generated from the recipe classes. `--set KEY=VALUE` changes one field of a run."]
    for title, schema, of in (
        ("Distillation and alignment", Recipe, "`flashdmd distill` and `flashdmd align`"),
        ("Reward models", RewardRecipe, "`flashdmd reward train`"),
    ):
        parts += [f"## {title}", f"Fields of {of}.", *tables(schema)]
    rows = [f"| `{name}` | {cell(comment(RECIPES / f'{name}.yaml'))} |" for name in list_recipes()]
    parts += ["## Recipes of the package", "\n".join(["| recipe | what it is |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def comment(path: Path) -> str:
    """The comment at the beginning of a recipe."""
    lines = re.match(r"(#.*\n)*", path.read_text(encoding="utf-8"))
    return " ".join(line.lstrip("# ") for line in (lines[0] if lines else "").splitlines())


def tables(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The fields of a class, then those of the sections in it."""
    from flashdmd_cli.runs.recipe import config_of

    sections = {name: inner for name, f in schema.model_fields.items() if (inner := config_of(f.annotation))}
    own = {name: field for name, field in schema.model_fields.items() if name not in sections}
    if own:
        rows = [
            f"| `{prefix}{name}` | {kind(field.annotation)} | {default(field)} | {cell(field.description or '')} |"
            for name, field in own.items()
        ]
        yield "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
    for name, inner in sections.items():
        yield f"### {prefix}{name}"
        yield text_of(schema.model_fields[name].description or inner.__doc__)
        yield from tables(inner, f"{prefix}{name}.")


def kind(annotation: Any) -> str:
    """A type as text: `int`, or the allowed values."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join("null" if each is NoneType else kind(each) for each in get_args(annotation))
    if get_origin(annotation) is not None and not hasattr(annotation, "__metadata__"):
        return f"{get_origin(annotation).__name__} of {', '.join(dict.fromkeys(map(kind, get_args(annotation))))}"
    inner = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    return getattr(inner, "__name__", str(inner)).replace("Ellipsis", "…")


def default(field: FieldInfo) -> str:
    """The default as YAML writes it."""
    value = field.default
    if value is PydanticUndefined:
        return "required"
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value}`"


def text_of(text: str | None) -> str:
    """A docstring without the indentation of its lines."""
    return "\n".join(line.strip() for line in (text or "").strip().splitlines())


def cell(text: str) -> str:
    """A text as the cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
