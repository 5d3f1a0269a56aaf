"""Finds the weights of the discriminator's SAM: the embedded ones, a path, or the official ones, downloaded."""

from __future__ import annotations

import http.client
import re
import socket
import urllib.error
from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import expanded, reason
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
TIMEOUT = 10.0
"""Seconds without a byte after which a connection counts as broken."""


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
    import torch

    name, size = SAM_FILES[model]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    at = folder / name
    if at.is_file():
        return at
    what = f"gan.sam: {name} ({size}) of segment-anything is not on this machine"
    if str(folder).startswith("~"):
        raise InputError(f"{what}, and no home directory is known", hint=f"set TORCH_HOME=DIR; {HINT}")
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise InputError(f"{what}, and HF_HUB_OFFLINE forbids downloading it", hint=HINT)
    url = f"{SAM_URL}/{name}"
    reporter.say(f"downloading {url} ({size}) to {folder}")
    prefix = re.search(r"_([0-9a-f]+)\.pth$", name)
    assert prefix is not None
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Writes to a temporary file and renames it after checking the hash.
        torch.hub.download_url_to_file(url, str(at), hash_prefix=prefix[1], progress=reporter.draws_bars)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        why = getattr(error, "reason", None) or error
        raise InputError(f"{what}, and {url} cannot be reached: {why}", hint=HINT) from error
    except RuntimeError as error:
        raise InputError(
            f"gan.sam: {url} does not have the expected hash: {error}", hint=f"try again; {HINT}"
        ) from error
    except OSError as error:
        hint = f"free some space, or set TORCH_HOME=DIR; {HINT}"
        raise InputError(f"gan.sam: cannot write to {folder}: {reason(error.errno or 0)}", hint=hint) from error
    finally:
        socket.setdefaulttimeout(before)
    return at


def with_sam(recipe: Recipe, reporter: Reporter | None = None) -> Recipe:
    """The recipe for training, in which `gan.sam` is replaced by a path on this machine.

    The recipe that is saved in the run's folder keeps the original name, so that the run can be resumed elsewhere.
    """
    return recipe.model_copy(update={"gan": recipe.gan.model_copy(update={"sam": str(find_sam(recipe, reporter))})})
