"""Latents and text embeddings beside the pixels: bf16 safetensors per shard, every prompt embedded once.

`pictures-000012.latents.safetensors` holds `latents` (N, C, h, w), one row per sample of that shard, in its order.
`pictures-000012.text.safetensors` holds the embeddings of the M prompts that no shard before has, for SDXL
`context` (M, L, D) and `pooled` (M, P), and `prompts` (M, 16), their digests. What computes them is handed in: nothing
here knows a model.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import PICTURE_SUFFIXES
from flashdmd_cli.data.seen import Seen, scratch
from flashdmd_cli.data.whole import read_tar, whole

LATENTS, TEXT = ".latents.safetensors", ".text.safetensors"
PROMPTS = "prompts"
REBUILD = "the same prepare-data command with --yes writes it again"


@dataclass(frozen=True)
class Encoders:
    """The two networks of a family that a cache stands in for."""

    identity: str
    """Hash of their weights: a cache of other weights is not read."""
    latents: Callable[[Tensor], Tensor]
    """Pictures (B, 3, H, W) on [-1, 1] -> latents (B, C, h, w)."""
    text: Callable[[Sequence[str]], Mapping[str, Tensor]]
    """B prompts -> embeddings (B, ...) by name."""


def digest(prompt: str) -> bytes:
    """16 bytes that name a prompt."""
    return hashlib.sha256(prompt.encode()).digest()[:16]


def first_uses(shards: Sequence[Path], work: Path) -> tuple[list[int], int, int]:
    """Where prompts occur for the first time, over all shards: number of new prompts of each, of samples, of pictures.

    Each shard's new prompts are noted in `work`, for whichever process embeds them.
    """
    counts, samples, pictures = [], 0, 0
    with scratch(work / "prompts.sqlite") as connection:
        seen = Seen(connection, "prompts")
        for shard in shards:
            new: list[str] = []
            for _, members in read_tar(shard):
                samples += 1
                pictures += any(kind in PICTURE_SUFFIXES for kind in members)
                if seen.add(digest(prompt := members["txt"].decode())):
                    new.append(prompt)
            with whole(_new_prompts(work, shard)) as temporary:
                temporary.write_text(json.dumps(new), encoding="utf-8")
            counts.append(len(new))
    return counts, samples, pictures


def _new_prompts(work: Path, shard: Path) -> Path:
    return work / f"{shard.stem}.prompts.json"


def new_prompts(work: Path, shard: Path) -> list[str]:
    """The prompts that no shard before this one has, as `first_uses` noted them."""
    prompts: list[str] = json.loads(_new_prompts(work, shard).read_text(encoding="utf-8"))
    return prompts


def cache_files(shard: Path, num_prompts: int, what: Sequence[str]) -> list[Path]:
    """The cache files that a shard with `num_prompts` new prompts has in the end."""
    latents = [shard.with_name(shard.stem + LATENTS)] if "latents" in what else []
    return latents + ([shard.with_name(shard.stem + TEXT)] if "text" in what and num_prompts else [])


def is_current(path: Path, identity: str) -> bool:
    """Whether a cache file is there, whole, and made by these weights."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("encoders") == identity
    except Exception:  # the library raises its own kind for a damaged file, the system others for a missing one
        return False


def write_caches(
    shard: Path, work: Path, encoders: Encoders, what: Sequence[str], batch: int = 8,
    tick: Callable[[int], None] = lambda num: None, stop: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Write the caches of one shard that are not there yet. `tick` is told of pictures and prompts; a stop leaves
    nothing half-done."""
    metadata = {"encoders": encoders.identity}
    latents, text = shard.with_name(shard.stem + LATENTS), shard.with_name(shard.stem + TEXT)
    if "latents" in what and not is_current(latents, encoders.identity):
        rows = []
        for pictures in _batches(shard, batch):
            if stop():
                return
            rows.append(encoders.latents(pictures).to("cpu", torch.bfloat16))
            tick(len(pictures))
        with whole(latents, work) as temporary:
            _save({"latents": torch.cat(rows)}, temporary, metadata)
    prompts = new_prompts(work, shard)
    if "text" in what and prompts and not is_current(text, encoders.identity):
        embedded: list[Mapping[str, Tensor]] = []
        for start in range(0, len(prompts), batch):
            if stop():
                return
            part = prompts[start : start + batch]
            embedded.append({name: x.to("cpu", torch.bfloat16) for name, x in encoders.text(part).items()})
            tick(len(part))
        names = torch.tensor([list(digest(prompt)) for prompt in prompts], dtype=torch.uint8)
        tensors = {name: torch.cat([part[name] for part in embedded]) for name in embedded[0]} | {PROMPTS: names}
        with whole(text, work) as temporary:
            _save(tensors, temporary, metadata)


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    path.chmod(0o644)  # the library would keep the file to its owner


def _batches(shard: Path, batch: int) -> Iterator[Tensor]:
    """Pictures of a shard, (B, 3, H, W) on [-1, 1]."""
    rows: list[Tensor] = []
    for _, members in read_tar(shard):
        data = next(data for kind, data in members.items() if kind in PICTURE_SUFFIXES)
        with Image.open(io.BytesIO(data)) as image:
            picture = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        rows.append(picture.float() / 127.5 - 1)
        if len(rows) == batch:
            yield torch.stack(rows)
            rows = []
    if rows:
        yield torch.stack(rows)


class CacheReader:
    """The caches of a folder of shards; `latents` and `text` say which there are."""

    def __init__(self, shards: Sequence[Path], what: Sequence[str]) -> None:
        self.latents, self.text = "latents" in what, "text" in what
        self._prompts: dict[bytes, tuple[Path, int]] = {}
        for shard in shards if self.text else ():
            path = shard.with_name(shard.stem + TEXT)
            if path.is_file():
                with _opened(path) as file:
                    digests = file.get_tensor(PROMPTS).numpy()
                self._prompts |= {row.tobytes(): (path, place) for place, row in enumerate(digests)}

    def latent(self, shard: Path, place: int) -> Tensor:
        """Latents (C, h, w), float32, of sample `place` of a shard."""
        with _opened(shard.with_name(shard.stem + LATENTS)) as file:
            latent: Tensor = file.get_slice("latents")[place].float()
        return latent

    def embedding(self, prompt: str) -> dict[str, Tensor]:
        """Embeddings of a prompt by name, float32."""
        found = self._prompts.get(digest(prompt))
        if found is None:
            raise DataError(f"--data: the text cache lacks the prompt {prompt[:60]!r}", REBUILD)
        path, place = found
        with _opened(path) as file:
            return {name: file.get_slice(name)[place].float() for name in file.keys() if name != PROMPTS}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, of which only what is asked for is read; DataError when it cannot be."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except Exception as error:
        raise DataError(f"--data: {path} cannot be read: {str(error).splitlines()[0]}", REBUILD) from None
