"""Pictures and captions for the training of a denoiser, rendered and encoded on its device and renewed meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flashdmd_cli.shapes.captions import WORDINGS, caption
from flashdmd_cli.shapes.render import render
from flashdmd_cli.shapes.world import NUM_COMBINATIONS, attributes_of, combination_index, sample_scenes

Encode = Callable[[Tensor], Tensor]
"""Pictures (B, 3, 64, 64) on [-1, 1] -> latents (B, C, h, w)."""
Embed = Callable[[Tensor], dict[str, Tensor]]
"""Token ids (B, L) of captions -> their embeddings by name."""
NUM_WORDINGS = len(WORDINGS["left"])


def caption_table(tokenize: Callable[[list[str]], Tensor]) -> Tensor:
    """Token ids of every caption of the world, (18432, 3, L): by combination of attributes and wording.

    Tokenizing them once is faster than doing it for every picture. `tokenize` gives (B, L) for B captions.
    """
    rows = attributes_of(torch.arange(NUM_COMBINATIONS))
    ids = tokenize([caption(row, way) for row in rows for way in range(NUM_WORDINGS)])
    return ids.unflatten(0, (NUM_COMBINATIONS, NUM_WORDINGS))


class Stream:
    """`chunks * size` pictures as latents with the embeddings of their captions, the oldest chunk replaced by turns.

    Chunk `c` depends on (seed, c) alone, and which chunks are there on the step alone, so an interrupted training that
    resumes sees the same pictures.
    """

    def __init__(
        self,
        encode: Encode,
        embed: Embed,
        table: Tensor,
        device: torch.device | str,
        chunks: int,
        size: int,
        every: int,
        seed: int = 0,
    ) -> None:
        """A new chunk comes `every` so many steps. `table` is that of `caption_table`."""
        self.encode, self.embed, self.table, self.device = encode, embed, table, torch.device(device)
        self.chunks, self.size, self.every, self.seed = chunks, size, every, seed
        self._first: int | None = None
        """The next chunk to render; None before the first step."""
        self._tensors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self.chunks * self.size

    def advance(self, step: int) -> None:
        """Render what is due at `step`; at the first call, everything."""
        newest = self.chunks + step // self.every
        for chunk in range(newest - self.chunks if self._first is None else self._first, newest):
            self._fill(chunk)
        self._first = newest

    @torch.no_grad()
    def _fill(self, chunk: int) -> None:
        seed = self.seed * 1_000_003 + chunk
        generator = torch.Generator().manual_seed(seed)
        scenes = sample_scenes(self.size, generator)
        ways = torch.randint(NUM_WORDINGS, (self.size,), generator=generator)
        ids = self.table[combination_index(scenes.attributes), ways].to(self.device)
        pictures = render(scenes.to(self.device), torch.Generator(self.device).manual_seed(seed))
        pictures = ((pictures + 1) * 127.5).round() / 127.5 - 1  # as from a file
        place = slice(chunk % self.chunks * self.size, (chunk % self.chunks + 1) * self.size)
        for name, values in {"latents": self.encode(pictures), **self.embed(ids)}.items():
            if name not in self._tensors:
                shape = (len(self), *values.shape[1:])
                self._tensors[name] = torch.empty(shape, dtype=torch.float16, device=self.device)
            self._tensors[name][place] = values.half()

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The pictures with these numbers (B,): `latents` and the embeddings, float32."""
        return {name: tensor[index].float() for name, tensor in self._tensors.items()}
