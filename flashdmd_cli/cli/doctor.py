"""`flashdmd doctor`: checks whether this machine has everything that the commands need."""

from __future__ import annotations

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Quiet
from flashdmd_cli.cli.output import command


def doctor(as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Check packages, device, models and disk, and compare a generated picture with a stored one.

    Exit code 1 if a check fails.
    """
    with command(as_json, quiet, debug) as output:
        from flashdmd_cli.workflows.doctor import check_all

        rows = check_all()
        checks = {name: {"ok": fine, "message": message} for name, fine, message in rows}
        document = {"ok": all(fine for _, fine, _ in rows), "checks": checks}
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{'ok    ' if fine else 'not ok'} {name:<{width}}  {message}" for name, fine, message in rows]
        output.result(document, lines, [name for name, fine, _ in rows if not fine])
        if not document["ok"]:
            raise typer.Exit(1)
