"""Reading weight files: tensors only, and one-line errors for damaged files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from flashdmd_cli.core.parsing import parse_json
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.core.weights import fit, read_pickle
from flashdmd_cli.runs.errors import InputError

Network = TypeVar("Network", bound=nn.Module)
AGAIN = "copy or download it again"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a pickle, which is read without running code; float32.

    In a pickle they may lie below the key `state_dict`. InputError for a file that cannot be read.
    """
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    except Unfit as error:
        raise InputError(f"{path}: {error}", AGAIN) from None
    except (OSError, SafetensorError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not readable as weights: {first}", AGAIN) from None
    tensors = found.get("state_dict", found) if isinstance(found, dict) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"{path}: does not hold a table of tensors", AGAIN)
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A table in JSON; InputError for anything else."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON: {error}", AGAIN) from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: does not hold a table", AGAIN)
    return found


def fill(net: Network, tensors: Mapping[str, Tensor], origin: Path) -> Network:
    """`net` with the tensors of the file `origin`, all of them and no others; frozen, in eval mode."""
    try:
        return fit(net, tensors).requires_grad_(False).eval()
    except Unfit as error:
        raise InputError(f"{origin}: {error}", AGAIN) from None
