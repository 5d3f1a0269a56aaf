"""`flashdmd doctor`: is everything here that the commands need?"""

from __future__ import annotations

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Quiet
from flashdmd_cli.cli.output import command


def doctor(as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Check packages, device, models and disk, and draw a picture that is known.

    Exit code 1 if something that the commands need is missing.
    """
    with command(as_json, quiet, debug) as output:
        from flashdmd_cli.workflows.doctor import check_all

        rows = check_all()
        document = {"ok": all(fine for _, fine, _ in rows), "checks": {n: {"ok": f, "said": s} for n, f, s in rows}}
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{'ok    ' if fine else 'not ok'} {name:<{width}}  {said}" for name, fine, said in rows]
        output.result(document, lines, [name for name, fine, _ in rows if not fine])
        if not document["ok"]:
            raise typer.Exit(1)
