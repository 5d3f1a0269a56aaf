"""Loads the networks of a teacher (a `Family`) to a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from flashdmd_cli.families.files import Source
from flashdmd_cli.families.registry import family_at
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.nearest import nearest
from flashdmd_cli.runs.tables import Device

if TYPE_CHECKING:
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.device import Place


def load_family(source: Path | Source, place: Place | None = None, weights: str = "fp32") -> Family:
    """The family of a teacher, loaded to `place` (default: the accelerator if there is one, in float32).

    Its denoiser is stored in the format `weights`. Raises `InputError` if it cannot be read.
    """
    from safetensors import SafetensorError

    from flashdmd_cli.runs.device import resolve

    place, source = place or resolve(precision="fp32"), source if isinstance(source, Source) else Source(source)
    hush()
    try:
        family = family_at(source.folder).module.load(source, place.precision, weights)
    except (OSError, ValueError, SafetensorError) as error:
        hint = getattr(error, "hint", "")
        raise InputError(f"--teacher {source.weights}: {str(error).splitlines()[0]}", hint=hint) from error
    return family.to(place.device)


def hush() -> None:
    """Turn off the progress bars and warnings of diffusers and transformers; the commands print their own."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def check_device(device: str | None) -> None:
    """UsageError for a name that no device has; whether this machine has the device is known once torch is loaded."""
    names = get_args(Device)
    if device is not None and device not in names:
        raise UsageError(
            f"--device {device}: no such device{nearest(device, names)}", hint=f"one of {', '.join(names)}"
        )


def drawing_place(device: str | None) -> Place:
    """Device for sampling and measuring: `--device`, in float32, so that results are comparable across machines."""
    from flashdmd_cli.runs.device import resolve

    return resolve(device or "auto", "fp32")
