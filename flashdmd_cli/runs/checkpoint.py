"""Resumable state on disk: tensors as safetensors, the rest as JSON, in a folder that is whole or absent."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashdmd_cli.runs.errors import FlashDMDError, InputError
from flashdmd_cli.runs.files import as_readable_as_others, sync, write_error, writing

NUM_KEPT = 2
_TENSORS, _META = "tensors.safetensors", "state.json"


def state_folder(root: Path, step: int) -> Path:
    """Where the state after `step` finished steps lives: `root/step-00000042`."""
    return root / f"step-{step:08d}"


def save_state(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Save tensors (any shape, dtype and device) and JSON-able `meta` as `folder`, whose name ends in the step number.

    Everything is written beside it under a temporary name and renamed at the end; then all but the newest two
    states in the same root are deleted. On a full disk raises `FlashDMDError` and leaves the earlier ones alone.
    """
    root, temporary = folder.parent, folder.with_name(f".{folder.name}.tmp")
    with writing(folder):
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    try:
        _write(temporary, tensors, meta)
        with writing(folder):
            replaced = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(replaced, ignore_errors=True)
            if folder.exists():
                os.rename(folder, replaced)
            os.rename(temporary, folder)
            sync(root)
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _states(root)[:-NUM_KEPT]:
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the meta data that `save_state` wrote; raises `InputError` when damaged."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        return load_file(folder / _TENSORS), meta
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"--out: the saved state {folder} cannot be read: {error}",
            hint=f"delete {folder} and run the same command again: it resumes from the state before",
        ) from error


def latest_state(root: Path) -> Path | None:
    """The newest whole state under `root`, by step number, or None."""
    states = _states(root)
    return states[-1] if states else None


def _write(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write both files into `folder` and wait until they are on the disk."""
    path = folder / _TENSORS
    try:
        with writing(folder):
            save_file(_independent(tensors), path)
            as_readable_as_others(folder)
            sync(path)
            (folder / _META).write_text(json.dumps(meta), encoding="utf-8")
            sync(folder / _META)
            sync(folder)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise write_error(folder.parent, int(number.group(1)) if number else 0, str(error)) from error


def _independent(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, no two in the same memory, as safetensors wants them."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        result[name] = tensor
    return result


def _states(root: Path) -> list[Path]:
    """All whole states under `root`, oldest first."""
    if not root.is_dir():
        return []
    whole = [path.parent for path in root.glob(f"*/{_META}") if not path.parent.name.startswith(".")]
    return sorted(whole, key=_step)


def _step(folder: Path) -> int:
    number = re.search(r"(\d+)$", folder.name)
    if number is None:
        raise FlashDMDError(f"--out: {folder} is not a saved state", hint="its name should end in a step number")
    return int(number.group(1))
