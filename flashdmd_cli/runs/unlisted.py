"""What is in the folder of a result and in no manifest."""

from __future__ import annotations

from pathlib import Path

from flashdmd_cli.runs.folder import MARK
from flashdmd_cli.runs.lock import LOCK
from flashdmd_cli.runs.manifest import MANIFEST, Manifest

STATES = "state"
"""Subfolder of the states that a training is resumed from."""


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """What is in a result's folder and not in its manifest, so that no hash is known of it: states of a training one by
    one, and of all else the names at the top level."""
    listed = {record.path for record in manifest.files} | {MANIFEST, MARK, LOCK}
    found = set()
    for path in folder.rglob("*"):
        place = path.relative_to(folder)
        if path.is_file() and place.as_posix() not in listed:
            found.add("/".join(place.parts[: 2 if place.parts[0] == STATES else 1]))
    return sorted(found)
