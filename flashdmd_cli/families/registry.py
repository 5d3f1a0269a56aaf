"""The list of model families, and detection of the family of a folder or repository."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.facts import Facts
from flashdmd_cli.families.sd3.facts import SD3
from flashdmd_cli.families.sdxl.facts import SDXL

FAMILIES: dict[str, Facts] = {SDXL.name: SDXL, SD3.name: SD3}


def family_named(name: str) -> Facts:
    """The family with this name, as used in recipes and manifests; Unfit if there is none."""
    try:
        return FAMILIES[name]
    except KeyError:
        raise Unfit(f"family: no {name}", f"one of {', '.join(FAMILIES)}") from None


def family_at(place: Path) -> Facts:
    """The family of a pipeline folder, by the class name in its `model_index.json`.

    SDXL if there is no match; its `refuse` then reports what was found.
    """
    try:
        name = parse_json((place / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return SDXL
    return next((facts for facts in FAMILIES.values() if str(name).startswith(facts.pipeline)), SDXL)


def family_of_files(names: Iterable[str]) -> Facts:
    """The family of a repository with these files: the first whose networks are all present, else SDXL."""
    present = set(names)
    for facts in FAMILIES.values():
        if all(f"{part}/config.json" in present for part in facts.networks):
            return facts
    return SDXL
