"""The conditioning inputs of a denoiser for a batch of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


class Conditioning(Mapping[str, Tensor]):
    """Named tensors with one row for each of `B` pictures, e.g. SDXL's `context`, `pooled` and `time_ids`.

    A mapping from names, which the family chooses, to tensors; `len` is the number of names, `batch` that of rows.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def batch(self) -> int:
        """`B`, the number of pictures."""
        return len(next(iter(self._tensors.values())))

    def rows(self, index: slice | Tensor) -> Conditioning:
        """A selection of rows by a slice, a boolean mask (B,) or indices."""
        return Conditioning({name: tensor[index] for name, tensor in self.items()})

    def replace(self, **tensors: Tensor) -> Conditioning:
        """A copy with some tensors replaced."""
        return Conditioning({**self, **tensors})

    def to(self, device: torch.device | str) -> Conditioning:
        """A copy on another device."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenation along the batch dimension; all parts need the names of the first."""
        return Conditioning({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
