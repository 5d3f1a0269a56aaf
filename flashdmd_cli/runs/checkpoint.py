"""Saved training states: tensors as safetensors, all else as JSON, in a folder that is written atomically.

`state.json` contains name, dtype and shape of every tensor and the hash of their file, so that damaged states are
detected.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flashdmd_cli.runs.errors import FlashDMDError, InputError
from flashdmd_cli.runs.files import as_readable_as_others, sha256_file, sync, write_error, writing

NUM_KEPT = 2
_TENSORS, _META = "tensors.safetensors", "state.json"


def state_folder(root: Path, step: int) -> Path:
    """Folder of the state after `step` iterations, for example `root/step-00000042`."""
    return root / f"step-{step:08d}"


def save_state(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Save tensors (any shape, dtype and device) and JSON-serialisable `meta` as `folder`, named as by `state_folder`.

    The folder is written under a temporary name and renamed at the end; then all but the latest two states in the same
    root are deleted. Raises `FlashDMDError` on a full disk, which leaves earlier states unchanged.
    """
    root, temporary = folder.parent, folder.with_name(f".{folder.name}.tmp")
    with writing(folder):
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        temporary.mkdir()
    try:
        _write(temporary, tensors, meta)
        with writing(folder):
            replaced = folder.with_name(f".{folder.name}.old")
            if folder.exists():
                os.rename(folder, replaced)
            os.rename(temporary, folder)
            sync(root)
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _states(root)[:-NUM_KEPT]:
        if old != folder:
            _retire(old)


def load_state(folder: Path, flag: str = "--out") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (on the CPU) and the metadata that `save_state` wrote.

    Raises `InputError`, with a message that starts with `flag`, for a damaged state.
    """
    try:
        state = json.loads((folder / _META).read_text(encoding="utf-8"))
        recorded, digest, meta = state["tensors"], state["sha256"], state["meta"]
        tensors = load_file(folder / _TENSORS)
    except KeyError as error:
        raise unfit(folder, f"cannot be read: its {_META} lacks {error}", flag) from error
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise unfit(folder, f"cannot be read: {error}", flag) from error
    if problem := difference(kinds(tensors), recorded):
        raise unfit(folder, f"is not what was saved: {problem}", flag)
    if sha256_file(folder / _TENSORS) != digest:
        raise unfit(folder, f"is not what was saved: {_TENSORS} has other contents", flag)
    return tensors, meta


def unfit(folder: Path, problem: str, flag: str = "--out") -> InputError:
    """The error for a state that cannot be resumed; `problem` completes the sentence, such as `lacks 'seconds'`."""
    return InputError(
        f"{flag}: the saved state {folder} {problem}",
        hint=f"delete {folder} and run the same command again: it resumes from the state before",
    )


def kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Dtype and shape of each tensor, `float32 [4, 6]`."""
    return {name: f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for name, x in tensors.items()}


def difference(present: Mapping[str, str], wanted: Mapping[str, str]) -> str | None:
    """The first difference between two results of `kinds`, with the number of further ones; None if they are equal."""
    missing, unexpected = wanted.keys() - present.keys(), present.keys() - wanted.keys()
    changed = {name for name in wanted.keys() & present.keys() if wanted[name] != present[name]}
    for verb, names in (("lacks", missing), ("has an unexpected", unexpected), ("has another", changed)):
        if names:
            first = min(names)
            message = f"{verb} {first}"
            message += f", {present[first]} instead of {wanted[first]}" if names is changed else ""
            return message + (f", and {len(names) - 1} more" if len(names) > 1 else "")
    return None


def latest_state(root: Path) -> Path | None:
    """The complete state with the highest step number under `root`, or None."""
    states = _states(root)
    return states[-1] if states else None


def _write(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write both files into `folder` and flush them to the disk."""
    path = folder / _TENSORS
    try:
        with writing(folder):
            tensors = _independent(tensors)
            save_file(tensors, path)
            as_readable_as_others(folder)
            sync(path)
            state = {"meta": meta, "sha256": sha256_file(path), "tensors": kinds(tensors)}
            (folder / _META).write_text(json.dumps(state), encoding="utf-8")
            sync(folder / _META)
            sync(folder)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise write_error(folder.parent, int(number.group(1)) if number else 0, str(error)) from error


def _independent(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous and without shared memory, as safetensors requires."""
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


def _sweep(root: Path) -> None:
    """Delete leftovers of a killed process under `root`: temporary folders and incomplete states."""
    for path in [*root.glob(".step-*"), *root.glob("step-*")]:
        if path.name.startswith(".") or not (path / _META).is_file():
            shutil.rmtree(path, ignore_errors=True)


def _retire(folder: Path) -> None:
    """Delete a state. It is renamed first, so that an interruption leaves no partial state under its name."""
    gone = folder.with_name(f".{folder.name}.old")
    with contextlib.suppress(OSError):
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _states(root: Path) -> list[Path]:
    """All complete states under `root`, oldest first."""
    if not root.is_dir():
        return []
    whole = [path.parent for path in root.glob(f"*/{_META}") if not path.parent.name.startswith(".")]
    return sorted(whole, key=_step)


def _step(folder: Path) -> int:
    number = re.search(r"(\d+)$", folder.name)
    if number is None:
        raise FlashDMDError(f"--out: {folder} is not a saved state", hint="its name should end in a step number")
    return int(number.group(1))
