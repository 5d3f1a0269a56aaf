"""Tensors on disk that are read one at a time, and safetensors files that are written one tensor at a time.

Converting a large model this way takes the memory of its largest tensor, not that of the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open
from torch import Tensor

from flashdmd_cli.core.unfit import Unfit

NAMES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""Name of a number format in the header of a safetensors file -> format."""
_CODES = {dtype: name for name, dtype in NAMES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor with known shape and number format, which `read` loads."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def to(self, dtype: torch.dtype | None) -> Stored:
        """In another number format, if it has floating-point values; unchanged for None."""
        if dtype in (None, self.dtype) or not self.dtype.is_floating_point:
            return self
        return replace(self, dtype=dtype, read=lambda: self.read().to(dtype))

    def changed(self, function: Callable[[Tensor], Tensor]) -> Stored:
        """`function` applied when it is read; it is also called once with a tensor on the meta device for the shape."""
        shape = tuple(function(torch.empty(self.shape, device="meta")).shape)
        return replace(self, shape=shape, read=lambda: function(self.read()))


def constant(tensor: Tensor) -> Stored:
    """A tensor that is in memory."""
    return Stored(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def joined(parts: Iterable[Stored]) -> Stored:
    """Several tensors concatenated along their first dimension."""
    parts = list(parts)
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Stored(shape, parts[0].dtype, lambda: torch.cat([part.read() for part in parts]))


def read_stored(files: Iterable[Path]) -> dict[str, Stored]:
    """The tensors of safetensors files by name.

    Raises `OSError` or `SafetensorError` if a header cannot be read, Unfit for number formats that PyTorch lacks.
    """
    found: dict[str, Stored] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if part.get_dtype() not in NAMES:
                    known = ", ".join(NAMES)
                    raise Unfit(f"{path.name}: {name} is stored as {part.get_dtype()}", f"supported are {known}")
                found[name] = Stored(tuple(part.get_shape()), NAMES[part.get_dtype()], _reader(path, name))
    return found


def _reader(path: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        # The file is opened for each tensor: pages of a mapped file count as memory in use until it is closed.
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return read


def header(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file: the length of its table as 8 bytes, and the table of tensors as JSON."""
    table: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for name, tensor in tensors.items():
        table[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(table, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the values that follow are aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text


def file_size(tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> int:
    """Size in bytes of the file that `write_stored` writes."""
    return len(header(tensors, metadata)) + sum(tensor.nbytes for tensor in tensors.values())


def write_stored(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, reading one tensor at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(header(tensors, metadata))
        for name, stored in tensors.items():
            tensor = stored.read()
            if (tuple(tensor.shape), tensor.dtype) != (stored.shape, stored.dtype):
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {stored.dtype} {stored.shape}")
            _write_values(stream, tensor)


def _write_values(stream: IO[bytes], tensor: Tensor) -> None:
    """Append the bytes of a tensor, row by row, in the order of safetensors (little-endian, contiguous)."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        stream.write(flat.view(torch.uint8).numpy().data)
