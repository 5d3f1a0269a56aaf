"""The list of model families, and detection of the family of a folder or file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.facts import Facts
from flashdmd_cli.families.files import DENOISER, read_shapes
from flashdmd_cli.families.sd3.facts import SD3
from flashdmd_cli.families.sd15.facts import SD15
from flashdmd_cli.families.sdxl.facts import SDXL

FAMILIES: dict[str, Facts] = {facts.name: facts for facts in (SDXL, SD3, SD15)}


def family_named(name: str) -> Facts:
    """The family with this name, as used in recipes and manifests; Unfit if there is none."""
    try:
        return FAMILIES[name]
    except KeyError:
        raise Unfit(f"family: no {name}", f"one of {', '.join(FAMILIES)}") from None


def family_of(index: Mapping[str, Any]) -> Facts:
    """The family of a pipeline by the class name in its `model_index.json`; Unfit, naming all families, if none has
    such a pipeline."""
    name = str(index.get("_class_name", "pipeline without a class"))
    for facts in FAMILIES.values():
        if name.startswith(facts.pipeline):
            return facts
    raise Unfit(f"is a {name}, which cannot be distilled", supported())


def family_at(place: Path) -> Facts:
    """The family of a pipeline folder or of a checkpoint file.

    SDXL if there is no match; its `refuse` then reports what was found.
    """
    try:
        if place.is_file():
            return _family_of_tensors(read_shapes(place))
        return family_of(parse_json((place / "model_index.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return SDXL


def _family_of_tensors(names: Iterable[str]) -> Facts:
    """The family of a file in the original layout: by its denoiser, and by its text encoders if others have the same
    one; Unfit if there is none."""
    names = list(names)

    def has(prefix: str, marks: Iterable[str]) -> bool:
        return any(name.startswith(tuple(prefix + mark for mark in marks)) for name in names)

    found = [facts for facts in FAMILIES.values() if has(DENOISER, facts.file_marks)]
    for facts in sorted(found, key=lambda facts: not has("", facts.text_marks)):
        return facts
    raise Unfit("is no checkpoint of a known family", supported())


def has_random_weights(family: str) -> bool:
    """Whether a family has its teacher's architecture with random weights, which `plan` and `bench` need."""
    return hasattr(family_named(family).module, "random_family")


def supported() -> str:
    """A hint with the families that can be distilled."""
    return "flashdmd distils " + ", ".join(f"{facts.name} ({facts.pipeline_class})" for facts in FAMILIES.values())
