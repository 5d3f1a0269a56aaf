"""The entry point `flashdmd` with all commands. Heavy libraries are imported only when a command runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flashdmd_cli import __version__
from flashdmd_cli.cli.align import align
from flashdmd_cli.cli.bench import bench
from flashdmd_cli.cli.demo import demo
from flashdmd_cli.cli.distill import distill
from flashdmd_cli.cli.doctor import doctor
from flashdmd_cli.cli.evaluate import eval_app
from flashdmd_cli.cli.export import export
from flashdmd_cli.cli.inspect import inspect
from flashdmd_cli.cli.plan import plan
from flashdmd_cli.cli.prepare import prepare_data
from flashdmd_cli.cli.recipes import recipes_app
from flashdmd_cli.cli.reward import reward_app
from flashdmd_cli.cli.sample import sample
from flashdmd_cli.cli.shapes import shapes_app

OTHER_NAMES = {"train": "'distill' or 'align'", "generate": "'sample'", "draw": "'sample'"}
"""Names of commands in other tools -> the command here."""


TyperMistake: Any = typer.BadParameter.__base__
"""What typer raises for words of a command line that it cannot take."""


class Commands(TyperGroup):
    """The commands. For an unknown name, suggests what `OTHER_NAMES` has for it, else the most similar command.

    Mistakes that typer finds are printed in one line, as all others are.
    """

    def make_context(self, *args: Any, **named: Any) -> Any:
        with in_one_line():
            return super().make_context(*args, **named)

    def invoke(self, ctx: Any) -> Any:
        with in_one_line():
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in OTHER_NAMES:
            ctx.fail(f"No such command '{args[0]}'. Did you mean {OTHER_NAMES[args[0]]}?")
        return super().resolve_command(ctx, args)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Print typer's usage errors, which are four lines, as one with the command that lists what may be given."""
    try:
        yield
    except TyperMistake as error:
        if type(error).show is TyperMistake.show and error.ctx is not None:  # not the help of a group without a command
            text, command = " ".join(error.format_message().split()), error.ctx.command_path
            error.show = lambda file=None: print(f"{text.rstrip('.')} ({command} --help)", file=file or sys.stderr)
        raise


app = typer.Typer(
    name="flashdmd",
    cls=Commands,
    help="Distil a diffusion model to a few steps (Flash-DMD). `flashdmd demo` shows it all in minutes on a laptop.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.command("prepare-data")(prepare_data)
app.command("distill")(distill)
app.command("align")(align)
app.command("sample")(sample)
app.add_typer(eval_app, name="eval")
app.command("export")(export)
app.command("inspect")(inspect)
app.add_typer(recipes_app, name="recipes")
app.add_typer(reward_app, name="reward")
app.command("plan")(plan)
app.command("bench")(bench)
app.command("doctor")(doctor)
app.add_typer(shapes_app, name="shapes")


def _version(asked: bool) -> None:
    if asked:
        print(f"flashdmd {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Distil a diffusion model to a few steps (Flash-DMD). `flashdmd demo` shows it all in minutes on a laptop."""
