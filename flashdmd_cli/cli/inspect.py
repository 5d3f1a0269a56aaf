"""`flashdmd inspect`: shows where a result folder or a picture comes from, and verifies the files of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashdmd_cli.cli.options import AsJson, Debug, Quiet
from flashdmd_cli.cli.output import command
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import plain

if TYPE_CHECKING:
    from flashdmd_cli.runs.manifest import Manifest


def summary(manifest: Manifest) -> list[str]:
    """The most important values of a manifest, one a line; those that an export has from its student say so."""
    facts = plain(manifest)
    counted = ", ".join(f"{role} {num}" for role, num in facts["updates"].items() if num)
    weights = " ".join(str(value) for value in (facts.get("weights") or {}).values())
    versions = " ".join(f"{name} {version}" for name, version in (facts.get("versions") or {}).items())
    data = facts.get("collection") or {}
    export = facts.get("export") or {}
    trained = "student's " if export else ""  # these values of an export are copied from its student
    grid = facts["recipe"].get("grid")
    steps = f"{grid['steps']} steps, " if isinstance(grid, dict) and grid.get("steps") else ""
    rows = {
        "kind": facts["kind"],
        "formats": ", ".join(f"{name} ({each['dtype']})" for name, each in export.get("formats", {}).items()),
        "student": ", ".join(Path(parent["path"]).name for parent in facts["parents"]) if export else "",
        "source": data.get("source"),
        "kept": f"{data['kept']} of {data['seen']}" if data else "",
        "left out": ", ".join(f"{num} {reason}" for reason, num in data.get("rejected", {}).items()),
        "cached": " and ".join((data.get("cache") or {}).get("what", [])),
        "family": facts.get("family"),
        f"{trained}step": facts.get("step") or "",
        f"{trained}images seen": facts.get("images_seen") or "",
        f"{trained}updates": counted,
        "grid": steps + facts["grid"]["scheduler"] if facts.get("grid") else "",
        f"{trained}weights": weights,
        f"{trained}seed": facts.get("seed"),
        "exported in" if export else "wall": f"{facts['wall_seconds']:.0f} s" if facts.get("wall_seconds") else "",
        "versions": versions,
        "warnings": "; ".join(facts.get("warnings") or []),
        "files": f"{len(facts['files'])}, {sum(file['size'] for file in facts['files']) / 1e6:.1f} MB",
    }
    shown = {name: value for name, value in rows.items() if value not in (None, "", {}, [])}
    width = max(12, *map(len, shown))
    return [f"{name:<{width}} {value}" for name, value in shown.items()]


def described(name: str) -> str:
    """The name of a file or folder that no manifest lists; a hidden state is one that was not finished."""
    from flashdmd_cli.runs.manifest import STATES

    return f"{name} (left by a process that was killed)" if name.startswith(f"{STATES}/.") else name


def inspect(
    folder: Annotated[
        Path, typer.Argument(help="A folder that a flashdmd command wrote, or a PNG file of sample.", metavar="DIR|PNG")
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show where a folder comes from and verify its files, or how a picture was drawn.

    The lineage goes back to the teacher; every file is compared with the hash in the manifest.
    """
    with command(as_json, quiet, debug) as output:
        if folder.is_file() and folder.suffix.lower() == ".png":
            from flashdmd_cli.evaluation.pictures import read_texts

            texts = read_texts(folder)
            output.result(texts, [f"{key:<12} {text}" for key, text in texts.items()], str(folder))
            return
        from flashdmd_cli.runs.folder import refuse_part, unlisted
        from flashdmd_cli.runs.lineage import lineage
        from flashdmd_cli.runs.manifest import read_manifest, verify

        refuse_part(folder, str(folder))
        manifest = read_manifest(folder)
        problems = verify(folder)
        drawn = lineage(folder, manifest)
        beside = unlisted(folder, manifest)
        document = {"manifest": manifest, "lineage": drawn, "problems": problems, "unlisted": beside}
        verdict = [] if problems else ["every file matches the manifest"]
        if beside:
            verdict.append(f"not in the manifest, so not verified: {', '.join(map(described, beside))}")
        output.result(document, [*summary(manifest), "", *drawn, "", *verdict], str(folder))
        if problems:
            raise InputError("; ".join(problems), hint="remove the folder, then run the command that wrote it again")
