"""Peak memory of adapters on one shared network against separate copies, each case in a process of its own.

    MALLOC_MMAP_THRESHOLD_=65536 PYTHONPATH=. python docs/log/shared-base/memory.py

With that threshold the C library gives freed memory back at once, so the peak is of what is in use.
"""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from flashdmd_cli.data.shards import Batch
from flashdmd_cli.families.sdxl.family import SDXLFamily
from flashdmd_cli.families.sdxl.reward import RewardConfig
from flashdmd_cli.families.sdxl.reward_files import new_reward
from flashdmd_cli.runs.recipe import load_recipe
from flashdmd_cli.runs.signals import StopFlag
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.training import state as states
from flashdmd_cli.training.align import align
from flashdmd_cli.training.distill import distill
from flashdmd_cli.training.loop import Watch
from flashdmd_cli.training.networks import Networks, Stage1, Stage1Adapters
from tests.test_shared_base import separate

FLAGS = {
    "train.batch": 8, "train.micro_batch": 8, "train.iterations": 2, "train.save_every": 100, "model.form": "lora",
    "model.lora_rank": 16, "model.precision": "fp32", "fake.ttur": 1, "train.average_images": 40,
}  # fmt: skip
ALIGN = {"align.rl_ratio": 1, "align.threshold": [0.0, 0.0], "align.candidates": 2, "align.lr": 1e-4}


class Noise:
    """Pictures of noise."""

    def __init__(self, side: int) -> None:
        self.side = side

    def batch(self, positions: range, seed: int = 0) -> Batch:
        """All with one caption."""
        pixels = torch.rand((len(positions), 3, self.side, self.side)) * 2 - 1
        return Batch(pixels, ["a plain red circle above a striped blue ring"] * len(positions))


def megabytes() -> float:
    """The most that this process has had in main memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(stage: str, copies: str, checkpointing: str) -> None:
    """Print one row: megabytes of the networks' weights, before the first iteration, at the peak."""
    torch.set_num_threads(1)
    family = SDXLFamily.load(asset("shapes-sdxl"))
    quiet = Watch(lambda *_: None, lambda *_: None, lambda *_: None)
    sizes: list[float] = []

    def networks(recipe, family, stage1) -> Networks:
        made = (separate if copies == "separate" else new_networks)(recipe, family, stage1)
        views = [view for view in (made.student, made.fake, made.teacher, made.average, made.reference) if view]
        tensors = {tensor.data_ptr(): tensor for view in views for tensor in view.base.net.state_dict().values()}
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()) / 2**20)
        sizes.append(megabytes())
        return made

    new_networks, states.new_networks = states.new_networks, networks
    flags = FLAGS | {"model.checkpointing": checkpointing == "checkpointed"}
    with tempfile.TemporaryDirectory() as out:
        if stage == "distill":
            recipe = load_recipe("shapes-4step-dmd2", flags=flags)
            distill(recipe, family, Noise(family.resolution), Path(out), quiet, StopFlag())
        else:
            recipe = load_recipe("shapes-4step-dmd2", flags=flags | ALIGN)
            values = family.base.twin().add_adapter("student", 16, 16).weights()
            stage1 = Stage1(family.teacher, None, None, 0, Stage1Adapters(values, values, 16, 16.0))
            reward = new_reward(family, RewardConfig(resolution=family.resolution, guidance=None)).requires_grad_(False)
            align(recipe, family, reward, stage1, Noise(family.resolution), Path(out), quiet, StopFlag())
    weights, ready = sizes
    print(f"| {stage} | {copies} | {checkpointing} | {weights:.1f} | {ready:.0f} | {megabytes():.0f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(*sys.argv[1:])
    else:
        print("| stage | networks | activations | weights, MB | before, MB | peak, MB |\n|---|---|---|---|---|---|")
        sys.stdout.flush()
        for case in itertools.product(("distill", "align"), ("separate", "shared"), ("kept", "checkpointed")):
            subprocess.run([sys.executable, __file__, *case], check=True)
