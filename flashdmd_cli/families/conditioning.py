"""What a denoiser is told about a batch of pictures, under the names that its family gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor


class Conditioning(Mapping[str, Tensor]):
    """Named tensors with one row for each of `B` pictures, e.g. SDXL's `context`, `pooled` and `time_ids`.

    As a mapping it has the names; `batch` is the number of rows, `rows` picks some, `cat` puts batches together.
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
        """The rows that `index` picks: a slice, a mask (B,), or numbers of rows."""
        return Conditioning({name: tensor[index] for name, tensor in self.items()})

    def replace(self, **tensors: Tensor) -> Conditioning:
        """The same with other tensors under some names."""
        return Conditioning({**self, **tensors})

    def to(self, device: torch.device | str) -> Conditioning:
        """On another device."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Batches one after the other; all have the names of the first."""
        return Conditioning({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
