"""The last student of a run that ships an average, as a checkpoint beside it: raw.py RUN OUT

For comparisons in which every method is measured raw and averaged alike. RUN is a folder of `flashdmd distill` in full
form with its newest state; OUT becomes a checkpoint that `flashdmd eval --from` takes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flashdmd_cli.runs.checkpoint import latest_state, load_state
from flashdmd_cli.runs.manifest import Weights, read_manifest, write_manifest
from flashdmd_cli.workflows.inputs.families import load_family
from flashdmd_cli.workflows.inputs.teachers import find_teacher


def main(run: Path, out: Path) -> None:
    """Write OUT/student and its manifest."""
    manifest, prefix = read_manifest(run), "student.net."
    state = latest_state(run / "state")
    assert state is not None and state.name.endswith(f"{manifest.step:08d}"), f"{run}: no state of its last iteration"
    tensors, _ = load_state(state)
    family = load_family(find_teacher(manifest.recipe["teacher"]))
    net = family.new_network()
    net.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    family.save_network(net, out / "student")
    assert manifest.weights is not None
    raw = Weights(form=manifest.weights.form, dtype=manifest.weights.dtype, average="raw")
    write_manifest(out, manifest.model_copy(update={"files": [], "weights": raw, "parents": []}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
