"""Saved training states: tensors as safetensors, all else as JSON, in a folder that is written atomically.

`state.json` contains name, dtype and shape of every tensor and the hash of each file, so that damaged states are
detected. If networks are sharded, each process writes its own rows into its own file, and reads the rows that it needs
from all files. So no process ever holds the whole state, and another number of processes can resume it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flashdmd_cli.core.shards import is_sharded, local, local_rows
from flashdmd_cli.runs.errors import FlashDMDError, InputError
from flashdmd_cli.runs.files import as_readable_as_others, sha256_file, sync, write_error, writing
from flashdmd_cli.runs.world import World

NUM_KEPT = 2
_TENSORS, _META = "tensors.safetensors", "state.json"


def state_folder(root: Path, step: int) -> Path:
    """Folder of the state after `step` iterations, for example `root/step-00000042`."""
    return root / f"step-{step:08d}"


@dataclass(frozen=True)
class Snapshot:
    """What one process writes of a state, in main memory."""

    tensors: dict[str, Tensor]
    """Whole tensors in the main process, and this process's rows of sharded ones."""
    kinds: dict[str, str]
    """Those of the whole tensors, by name."""
    meta: dict[str, Any]
    world: World
    """The processes that write: all if there are sharded tensors, else this one."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], meta: dict[str, Any], world: World, copied: bool = False) -> Snapshot:
        """`copied`: the snapshot shares no memory with `tensors`, which may change before it is written."""
        any_sharded = any(map(is_sharded, tensors.values()))
        own = {name: local(x) for name, x in tensors.items() if world.is_main or is_sharded(x)}
        meta = deepcopy(meta) if copied else meta
        return cls(_independent(own, copied), kinds(tensors), meta, world if any_sharded else World())


def save_state(
    folder: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any], world: World | None = None, keep: int = NUM_KEPT
) -> None:
    """Save tensors (any shape, dtype and device) and JSON-serialisable `meta` as `folder`, named as by `state_folder`.

    The folder is written under a temporary name and renamed at the end; then all but the latest `keep` states in the
    same root are deleted. Raises `FlashDMDError` on a full disk, which leaves earlier states unchanged. All processes
    of `world` make this call; only the main one writes if no tensor is sharded.
    """
    world = world or World()
    if world.is_main or any(map(is_sharded, tensors.values())):
        write_state(folder, Snapshot.of(tensors, meta, world), keep)


def write_state(folder: Path, snapshot: Snapshot, keep: int = NUM_KEPT) -> None:
    """`save_state` of a snapshot. A collective call of `snapshot.world`; an error in one process is raised in all."""
    root, temporary, world = folder.parent, folder.with_name(f".{folder.name}.tmp"), snapshot.world
    name = f"tensors-{world.rank}.safetensors" if world.rank else _TENSORS

    def begin() -> None:
        with writing(folder):
            root.mkdir(parents=True, exist_ok=True)
            _sweep(root)
            temporary.mkdir()

    def end() -> None:
        state = {"meta": snapshot.meta, "sha256": digests, "tensors": snapshot.kinds}
        with writing(folder):
            (temporary / _META).write_text(json.dumps(state), encoding="utf-8")
            sync(temporary / _META)
            sync(temporary)
            replaced = folder.with_name(f".{folder.name}.old")
            if folder.exists():
                os.rename(folder, replaced)
            os.rename(temporary, folder)
            sync(root)
            shutil.rmtree(replaced, ignore_errors=True)

    try:
        world.each(begin if world.is_main else None)
        digests = dict(world.each(lambda: (name, _write(temporary / name, snapshot.tensors))))
        world.each(end if world.is_main else None)
    finally:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
    if world.is_main:
        for old in _states(root)[:-keep]:
            if old != folder:
                _retire(old)


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a state by name, each read, on the CPU, when it is looked up.

    A tensor that several files contain was sharded: it consists of their rows, in the order of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._pieces: dict[str, list[Any]] = {}
        for path in paths:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                self._pieces.setdefault(name, []).append(file)

    def __getitem__(self, name: str) -> Tensor:
        whole = [file.get_tensor(name) for file in self._pieces[name]]
        return whole[0] if len(whole) == 1 else torch.cat(whole)

    def rows(self, name: str, rows: slice) -> Tensor:
        """The rows (of the first dimension) from `rows.start` to `rows.stop` of a tensor; no other is read."""
        found, first = [], 0
        for file in self._pieces[name]:
            piece = file.get_slice(name)
            num = piece.get_shape()[0]
            low, high = (min(max(place - first, 0), num) for place in (rows.start, rows.stop))
            found.append(piece[low:high])
            first += num
        return torch.cat(found)

    def kinds(self) -> dict[str, str]:
        """As the function `kinds`, without reading the tensors."""
        found = {}
        for name, files in self._pieces.items():
            shapes = [file.get_slice(name).get_shape() for file in files]
            shape = [sum(shape[0] for shape in shapes), *shapes[0][1:]] if len(shapes) > 1 else shapes[0]
            few = self.rows(name, slice(0, 0)) if shape else self[name]
            found[name] = _kind(few.dtype, shape)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def load_state(folder: Path, flag: str = "--out", world: World | None = None) -> tuple[SavedTensors, dict[str, Any]]:
    """The tensors and the metadata that `save_state` wrote.

    Raises `InputError`, with a message that starts with `flag`, for a damaged state. With a `world`, a collective call
    in which each process hashes a part of the files.
    """
    try:
        state = json.loads((folder / _META).read_text(encoding="utf-8"))
        recorded, digests, meta = state["tensors"], state["sha256"], state["meta"]
        digests = {_TENSORS: digests} if isinstance(digests, str) else dict(digests)  # earlier versions had one file
        tensors = SavedTensors([folder / name for name in digests])
        found = tensors.kinds()
    except KeyError as error:
        raise unfit(folder, f"cannot be read: its {_META} lacks {error}", flag) from error
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise unfit(folder, f"cannot be read: {error}", flag) from error
    if problem := difference(found, recorded):
        raise unfit(folder, f"is not what was saved: {problem}", flag)
    world = world or World()

    def check() -> None:
        for name in list(digests)[world.rank :: world.size]:
            if sha256_file(folder / name) != digests[name]:
                raise unfit(folder, f"is not what was saved: {name} has other contents", flag)

    world.each(check)
    return tensors, meta


def part_of(values: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """Of the tensor `name`, what this process has of `like`, which has the same shape: some rows, or the whole."""
    if not is_sharded(like):
        return values[name]
    rows = local_rows(like)
    return values.rows(name, rows) if isinstance(values, SavedTensors) else values[name][rows]


def unfit(folder: Path, problem: str, flag: str = "--out") -> InputError:
    """The error for a state that cannot be resumed; `problem` completes the sentence, such as `lacks 'seconds'`."""
    return InputError(
        f"{flag}: the saved state {folder} {problem}",
        hint=f"delete {folder} and run the same command again: it resumes from the state before",
    )


def kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Dtype and shape of each tensor, `float32 [4, 6]`."""
    return {name: _kind(x.dtype, x.shape) for name, x in tensors.items()}


def _kind(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


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


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a file and flush it to the disk; its hash."""
    try:
        with writing(path):
            save_file(tensors, path)
            as_readable_as_others(path.parent)
            sync(path)
            return sha256_file(path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise write_error(path, int(number.group(1)) if number else 0, str(error)) from error


def _independent(tensors: Mapping[str, Tensor], copied: bool) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous and without memory shared among them, as safetensors requires.

    `copied`: also without memory shared with `tensors`.
    """
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, given in tensors.items():
        tensor = given.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        is_shared = storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes
        if is_shared or (copied and given.device.type == "cpu"):
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
