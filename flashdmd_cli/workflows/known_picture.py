"""A picture that `doctor` samples and compares with a stored one, to detect libraries that compute wrong results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CAPTION = "a striped red ring left of a plain blue square"
STEPS, GUIDANCE = 4, 4.0
ASSET = "known-picture"
TOLERANCE = 0.02
"""Largest accepted mean absolute difference, on [-1, 1]. Rounding to 8 bits causes 0.002, another processor less; other
captions, or a text encoder with random weights, cause more than 0.1."""


def draw_known(teacher: Path) -> Tensor:
    """A picture (3, 64, 64) on [-1, 1] by the embedded teacher, from fixed noise, in float32 on the CPU."""
    from flashdmd_cli.evaluation.generate import generate
    from flashdmd_cli.families.sdxl.family import SDXLFamily
    from flashdmd_cli.workflows.inputs.families import hush

    hush()
    family = SDXLFamily.load(teacher)
    return generate(family, family.teacher, [CAPTION], 0, "ddim", STEPS, GUIDANCE)[0]


def save_known(teacher: Path, folder: Path) -> Path:
    """Sample the picture and save it as `folder/picture.png`."""
    from flashdmd_cli.evaluation.pictures import to_image

    folder.mkdir(parents=True, exist_ok=True)
    to_image(draw_known(teacher)).save(folder / "picture.png")
    return folder / "picture.png"


def check_picture() -> tuple[str, bool, str]:
    """(name, passed, message): whether the embedded teacher samples the stored picture on this machine."""
    from flashdmd_cli.shapes.assets import asset
    from flashdmd_cli.workflows.inputs.kinds import SHAPES

    try:
        stored = asset(ASSET) / "picture.png"
        teacher = asset(SHAPES)
        import numpy as np
        from PIL import Image

        wanted = np.asarray(Image.open(stored), dtype=np.float64) / 127.5 - 1
        difference = abs(draw_known(teacher).permute(1, 2, 0).numpy() - wanted).mean()
    except Exception as error:  # reported as a failed check, so that the other checks still run
        return "picture", False, str(error).splitlines()[0] if str(error) else type(error).__name__
    if difference <= TOLERANCE:
        return "picture", True, f"the embedded teacher draws what it should (mean difference {difference:.4f})"
    return "picture", False, (
        f"the embedded teacher draws another picture than it should (mean difference {difference:.2f}, at most "
        f"{TOLERANCE}): a library reads or computes its weights wrongly; pip install -U torch diffusers transformers"
    )  # fmt: skip
