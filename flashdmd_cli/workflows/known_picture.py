"""The picture that `doctor` draws and compares: weights that a library read wrongly draw another one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CAPTION = "a striped red ring left of a plain blue square"
STEPS, GUIDANCE = 4, 4.0
ASSET = "known-picture"
TOLERANCE = 0.02
"""Mean difference, black to white being 2. Eight bits take 0.002 of it and the order of sums on another processor less;
other captions, or a text encoder of random weights, are beyond 0.1."""


def draw_known(teacher: Path) -> Tensor:
    """The embedded teacher's picture (3, 64, 64) of one caption on [-1, 1], in float32 on the CPU, from fixed noise."""
    from flashdmd_cli.evaluation.generate import generate
    from flashdmd_cli.families.sdxl.family import SDXLFamily
    from flashdmd_cli.workflows.inputs.families import hush

    hush()
    family = SDXLFamily.load(teacher)
    return generate(family, family.teacher, [CAPTION], 0, "ddim", STEPS, GUIDANCE)[0]


def save_known(teacher: Path, folder: Path) -> Path:
    """Draw it and keep it as a picture of 8 bits."""
    from flashdmd_cli.evaluation.pictures import to_image

    folder.mkdir(parents=True, exist_ok=True)
    to_image(draw_known(teacher)).save(folder / "picture.png")
    return folder / "picture.png"


def check_picture() -> tuple[str, bool, str]:
    """(what, fine, said): whether the embedded teacher draws on this machine what it drew where it was made."""
    from flashdmd_cli.shapes.assets import asset
    from flashdmd_cli.workflows.inputs.kinds import SHAPES

    try:
        stored = asset(ASSET) / "picture.png"
        teacher = asset(SHAPES)
        import numpy as np
        from PIL import Image

        wanted = np.asarray(Image.open(stored), dtype=np.float64) / 127.5 - 1
        difference = abs(draw_known(teacher).permute(1, 2, 0).numpy() - wanted).mean()
    except Exception as error:  # whatever is broken here, the other rows have their say
        return "picture", False, str(error).splitlines()[0] if str(error) else type(error).__name__
    if difference <= TOLERANCE:
        return "picture", True, f"the embedded teacher draws what it should (mean difference {difference:.4f})"
    return "picture", False, (
        f"the embedded teacher draws another picture than it should (mean difference {difference:.2f}, at most "
        f"{TOLERANCE}): a library reads or computes its weights wrongly; pip install -U torch diffusers transformers"
    )  # fmt: skip
