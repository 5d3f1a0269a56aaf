"""How the teacher of an exported student is named in the lines of Python that load it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from flashdmd_cli.runs.manifest import Manifest
from flashdmd_cli.shapes import assets
from flashdmd_cli.workflows.inputs.kinds import EMBEDDED

if TYPE_CHECKING:
    from flashdmd_cli.export.card import TeacherName
    from flashdmd_cli.export.job import Job


def teacher_names(made: Manifest, job: Job) -> tuple[TeacherName, TeacherName]:
    """What a user loads the teacher from on this machine, and on any: a repository on the hub, a folder or a file.

    Only the first has a path; the second, for the card, has the last component of it alone.
    """
    from flashdmd_cli.export.card import TeacherName

    weights = job.source.weights
    if made.teacher is not None and (hub := made.teacher.hub):
        return (TeacherName(hub, json.dumps(hub)),) * 2
    for name in EMBEDDED:
        if weights.resolve() == (assets.ASSETS / name).resolve():
            imports = "from flashdmd_cli.shapes.assets import asset\n"
            return (TeacherName(name, f'str(asset("{name}"))', imports),) * 2
    note = "which is not on the hub: its path goes in place of the name"
    here, anywhere = str(weights), weights.name
    return TeacherName(here, json.dumps(here)), TeacherName(anywhere, json.dumps(anywhere), note=note)
