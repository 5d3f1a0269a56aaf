"""The last student of a run that ships an average, as a checkpoint beside it: raw.py RUN OUT

For comparisons in which every method is measured raw and averaged alike. RUN is a folder of `flashdmd distill` with its
newest state; OUT becomes a checkpoint that `flashdmd eval --from` takes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flashdmd_cli.runs.checkpoint import latest_state
from flashdmd_cli.runs.manifest import write_manifest
from flashdmd_cli.runs.results import stage1_checkpoint
from flashdmd_cli.training.state import State
from flashdmd_cli.workflows.inputs.families import load_family
from flashdmd_cli.workflows.inputs.sam import with_sam
from flashdmd_cli.workflows.inputs.teachers import find_source


def main(run: Path, out: Path) -> None:
    """Write OUT/student and its manifest."""
    checkpoint = stage1_checkpoint(run)
    manifest, recipe = checkpoint.manifest, checkpoint.recipe
    saved = latest_state(run / "state")
    assert saved is not None and saved.name.endswith(f"{manifest.step:08d}"), f"{run}: no state of its last iteration"
    family = load_family(find_source(recipe.teacher, recipe.model))
    state = State.new(with_sam(recipe), family)
    state.load(saved)
    family.save_network(state.student.net.merged(), out / "student")
    assert manifest.weights is not None
    raw = manifest.weights.model_copy(update={"average": "raw"})
    write_manifest(out, manifest.model_copy(update={"files": [], "weights": raw, "parents": []}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
