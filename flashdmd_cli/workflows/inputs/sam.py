"""Finds the weights of the discriminator's SAM: the embedded ones, a path, or the official ones, downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.download import RemoteFile, fetch_file
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import expanded
from flashdmd_cli.runs.reporter import Reporter, SilentReporter

if TYPE_CHECKING:
    from flashdmd_cli.runs.recipe import Recipe

SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything"
SAM_FILES = {
    "vit_b": ("sam_vit_b_01ec64.pth", "375 MB"),
    "vit_l": ("sam_vit_l_0b3195.pth", "1.2 GB"),
    "vit_h": ("sam_vit_h_4b8939.pth", "2.6 GB"),
}
"""Model -> (file name, which ends with the first digits of its SHA-256, and size)."""
HINT = "--set gan.sam=PATH takes a local file"


def find_sam(recipe: Recipe, reporter: Reporter | None = None) -> str | Path:
    """Path that the discriminator's encoder is loaded from; InputError if its weights cannot be found or downloaded."""
    sam = recipe.gan.sam
    if recipe.gan.kind != "pixel":
        return sam
    if sam == "embedded":
        from flashdmd_cli.shapes.assets import asset

        try:
            return asset("shapes-sam")
        except FileNotFoundError as error:
            raise InputError(f"gan.sam: {error}") from None
    path = expanded(sam)
    if path.exists():
        return path
    if sam not in SAM_FILES:
        raise InputError(f"gan.sam: no file {sam}", hint=f"a path, embedded, or one of {', '.join(SAM_FILES)}")
    return official_sam(sam, reporter or SilentReporter())


def official_sam(model: str, reporter: Reporter) -> Path:
    """The official weights in the folder of torch.hub, downloaded if they are missing."""
    name, size = SAM_FILES[model]
    return fetch_file(RemoteFile("gan.sam", f"{SAM_URL}/{name}", size, "segment-anything", HINT), reporter)


def with_sam(recipe: Recipe, reporter: Reporter | None = None) -> Recipe:
    """The recipe for training, in which `gan.sam` is replaced by a path on this machine.

    The recipe that is saved in the run's folder keeps the original name, so that the run can be resumed elsewhere.
    """
    return recipe.model_copy(update={"gan": recipe.gan.model_copy(update={"sam": str(find_sam(recipe, reporter))})})
