"""What an export names, and what its card and manifest will be like, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flashdmd_cli.runs.manifest import MANIFEST, FileRecord, FormatRecord, Manifest, hardware, versions
from flashdmd_cli.shapes import assets
from flashdmd_cli.workflows.card import CARD
from flashdmd_cli.workflows.inputs.kinds import EMBEDDED

if TYPE_CHECKING:
    from flashdmd_cli.export.card import Base
    from flashdmd_cli.export.job import File, Format, Job


def bases(made: Manifest, job: Job) -> tuple[Base, Base]:
    """What a user loads the teacher from on this machine, and on any: a repository on the hub, a folder or a file.

    Only the first has a path; the second, for the card, has the last component of it alone.
    """
    from flashdmd_cli.export.card import Base

    weights = job.source.weights
    if made.teacher is not None and (hub := made.teacher.hub):
        found = Base(hub, f'"{hub}"')
        return found, found
    for name in EMBEDDED:
        if weights.resolve() == (assets.ASSETS / name).resolve():
            imports = "from flashdmd_cli.shapes.assets import asset\n"
            found = Base(name, f'str(asset("{name}"))', imports)
            return found, found
    note = "which is not on the hub: its path goes in place of the name"
    return Base(str(weights), f'"{weights}"'), Base(weights.name, f'"{weights.name}"', note=note)


def expected(formats: Mapping[str, Format], job: Job) -> dict[str, FormatRecord]:
    """Records of the formats as they may come out, to estimate the sizes of the texts that have them."""
    return {
        name: FormatRecord(
            dtype=each.dtype(job), exact=each.is_exact(job), largest=0.0123456789012345, mean=0.00123456789012345,
            energy=None if each.is_exact(job) else 0.987654321098765,
        )
        for name, each in formats.items()
    }  # fmt: skip


def texts_of(manifest: Manifest, card: str, files: Sequence[File]) -> dict[str, File]:
    """The model card and the manifest of a planned export of `files`, whose sizes depend a little on its values."""
    from flashdmd_cli.export.job import text_file

    found = {CARD: text_file(CARD, card)}
    records = [FileRecord(path=file.path, size=file.size, sha256="0" * 64) for file in [*files, *found.values()]]
    filled = manifest.model_copy(update={"files": records, "versions": versions(), "hardware": hardware()})
    found[MANIFEST] = text_file(MANIFEST, filled.model_dump_json(indent=2) + "\n")
    return {path: replace(file, is_estimate=True) for path, file in found.items()}
