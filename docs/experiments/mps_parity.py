"""The attention layers of our MPS against those of `imscore`, a port by others, on the same small random weights.

From the top of the repository, where `imscore==0.0.11` (without its dependencies) and `einops` can be imported:
`python docs/experiments/mps_parity.py`.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, ".")
from flashdmd_cli.evaluation.scorers.mps import load_mps  # noqa: E402
from tests import stand_ins  # noqa: E402


def main() -> None:
    """The largest difference over 64 pictures with 50 tokens, prompts of 77, and masks with 1 to 77 tokens."""
    [package] = importlib.util.find_spec("imscore").submodule_search_locations  # type: ignore[union-attr]
    # Only this file of it: its own imports need transformers 4.
    spec = importlib.util.spec_from_file_location("cross", Path(package) / "mps" / "cross.py")
    assert spec is not None and spec.loader is not None
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    ours = load_mps(stand_ins.write_mps(Path(tempfile.mkdtemp())), torch.device("cpu")).cross
    theirs = other.CrossModel(dim=64, layer_num=4, heads=2).eval()
    theirs.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(0)
    tokens, context = torch.randn(64, 50, 64, generator=generator), torch.randn(64, 77, 64, generator=generator)
    kept = torch.rand(64, 77, generator=generator) < torch.linspace(0, 1, 64)[:, None]
    kept[:, 0] = True
    with torch.no_grad():
        mine = ours(tokens, context, kept[:, None, None])
        mask = torch.where(kept, 0.0, float("-inf"))[:, None].expand(-1, 50, -1)
        difference = (mine - theirs(tokens, context, mask)).abs().max()
    print(f"values of {mine.std():.2f}, largest difference {difference:.1e}")


if __name__ == "__main__":
    main()
