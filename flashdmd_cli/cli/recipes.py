"""`flashdmd recipes`: list, show and copy the recipes that come with the package."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Quiet
from flashdmd_cli.cli.output import command
from flashdmd_cli.runs.errors import UsageError

recipes_app = typer.Typer(help="List, show and copy recipes.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="A recipe's name, or a YAML file.", metavar="NAME")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Change one key, `fake.ttur=2`; may be repeated.")]


def first_comment(path: Path) -> str:
    """The first sentence of the comment at the head of a recipe file."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in lines)
    return text.split(". ", 1)[0].split(": ", 1)[0].rstrip(".")


@recipes_app.command("list")
def list_command(as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """List the recipes that come with the package."""
    with command(as_json, quiet, debug) as output:
        from flashdmd_cli.runs.recipe import list_recipes, recipe_path

        about = {name: first_comment(recipe_path(name)) for name in list_recipes()}
        width = max(map(len, about), default=0)
        rows = [f"{name:<{width}}  {text}".rstrip() for name, text in about.items()]
        output.result([{"name": name, "about": text} for name, text in about.items()], rows, list(about))


@recipes_app.command("show")
def show(name: Name, sets: Sets = None, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Print a recipe with every default filled in."""
    with command(as_json, quiet, debug) as output:
        from flashdmd_cli.runs.recipe import dump_recipe, load_any_recipe

        recipe = load_any_recipe(name, sets or [])
        output.result(recipe.model_dump(mode="json"), dump_recipe(recipe).rstrip(), recipe.name)


@recipes_app.command("copy")
def copy(
    name: Name,
    to: Annotated[Path | None, typer.Argument(help="File to write (default: ./NAME.yaml).", show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Copy a recipe to a new file, to be edited and passed to `--recipe FILE`."""
    with command(as_json, quiet, debug) as output:
        from flashdmd_cli.runs.files import writing
        from flashdmd_cli.runs.recipe import recipe_path

        source = recipe_path(name)
        target = to or Path(f"{source.stem}.yaml")
        if target.is_dir():
            target = target / source.name
        if target.exists() and not yes:
            raise UsageError(f"{target}: exists already", hint="--yes replaces it")
        use = {"align": "flashdmd align --from CKPT", "reward": "flashdmd reward train --pairs FILE"}
        command_line = f"{use.get(source.parent.name, 'flashdmd distill')} --recipe {target}"
        with writing(target, "TO"):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        output.result({"path": target}, f"{target}: edit it, then {command_line}", str(target))
