"""A family from disk to its device: what every verb that draws or trains begins with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashdmd_cli.runs.errors import InputError

if TYPE_CHECKING:
    from flashdmd_cli.models.layout import Source
    from flashdmd_cli.models.sdxl import SDXLFamily
    from flashdmd_cli.runs.device import Place


def load_family(source: Path | Source, place: Place | None = None) -> SDXLFamily:
    """The family behind a teacher, at `place` (default: the accelerator if there is one, in float32).

    InputError when it cannot be read.
    """
    from safetensors import SafetensorError

    from flashdmd_cli.models.sdxl import SDXLFamily
    from flashdmd_cli.runs.device import resolve

    place = place or resolve(precision="fp32")
    hush()
    try:
        family = SDXLFamily.load(source, place.precision)
    except (OSError, ValueError, SafetensorError) as error:
        hint = getattr(error, "hint", "")
        where = getattr(source, "weights", source)
        raise InputError(f"--teacher {where}: {str(error).splitlines()[0]}", hint=hint) from error
    return family.to(place.device)


def hush() -> None:
    """Keep the libraries' own bars and advice off stderr; what a person needs to know is said by the commands."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def drawing_place(device: str | None) -> Place:
    """Where pictures are drawn and measured: on `--device`, in float32, so that machines agree on figures."""
    from flashdmd_cli.runs.device import resolve

    return resolve(device or "auto", "fp32")
