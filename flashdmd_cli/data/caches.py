"""Cached latents and text embeddings: bf16 safetensors files beside each shard; every prompt is embedded once.

`pictures-000012.latents.safetensors` contains `latents` (N, C, h, w), one row per sample of the shard, in its order.
`pictures-000012.text.safetensors` contains the embeddings of the M prompts that are not in an earlier shard, for SDXL
`context` (M, L, D) and `pooled` (M, P), and `prompts` (M, 16), their digests. This module does not depend on a model:
the encoders are arguments.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.index import PROMPT_INDEX, PromptIndex, Spare, Tick, build_prompt_index, indexed
from flashdmd_cli.data.items import PICTURE_SUFFIXES
from flashdmd_cli.data.seen import Seen, scratch
from flashdmd_cli.data.whole import read_tar, whole

LATENTS, TEXT = ".latents.safetensors", ".text.safetensors"
PROMPTS = "prompts"
REBUILD = "the same prepare-data command with --yes writes it again"


@dataclass(frozen=True)
class Encoders:
    """The encoders of a family, whose results are cached."""

    identity: str
    """Hash of their weights; caches of other weights are written again."""
    latents: Callable[[Tensor], Tensor]
    """Pictures (B, 3, H, W) on [-1, 1] -> latents (B, C, h, w)."""
    text: Callable[[Sequence[str]], Mapping[str, Tensor]]
    """B prompts -> embeddings (B, ...) by name."""


def digest(prompt: str) -> bytes:
    """16 bytes that identify a prompt."""
    return hashlib.sha256(prompt.encode()).digest()[:16]


def first_uses(shards: Sequence[Path], work: Path) -> tuple[list[int], int, int]:
    """Find the prompts of each shard that are not in an earlier one, and store them in `work` for `write_caches`.

    Returns the number of new prompts of each shard, and the total numbers of samples and of pictures.
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
    """The prompts of a shard that are not in an earlier one, as stored by `first_uses`."""
    prompts: list[str] = json.loads(_new_prompts(work, shard).read_text(encoding="utf-8"))
    return prompts


def cache_files(shard: Path, num_prompts: int, what: Sequence[str]) -> list[Path]:
    """The cache files of a shard with `num_prompts` new prompts, once they are written."""
    latents = [shard.with_name(shard.stem + LATENTS)] if "latents" in what else []
    return latents + ([shard.with_name(shard.stem + TEXT)] if "text" in what and num_prompts else [])


def is_current(path: Path, identity: str) -> bool:
    """Whether a cache file exists, can be read, and was computed with these weights."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("encoders") == identity
    except Exception:  # OSError for a missing file, errors of the library for a damaged one
        return False


def write_caches(
    shard: Path, work: Path, encoders: Encoders, what: Sequence[str], batch: int = 8,
    tick: Callable[[int], None] = lambda num: None, stop: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Write the missing caches of one shard. `tick` is called with numbers of finished pictures and prompts; if `stop`
    returns true, no partial file is left."""
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
    path.chmod(0o644)  # the library makes it readable by its owner only


def _batches(shard: Path, batch: int) -> Iterator[Tensor]:
    """Pictures of a shard in batches (B, 3, H, W) on [-1, 1]."""
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


def prompts_of(path: Path) -> NDArray[np.uint8]:
    """Digests (M, 16) of the prompts in a text cache; DataError if it cannot be read."""
    with _opened(path) as file:
        digests: NDArray[np.uint8] = file.get_tensor(PROMPTS).numpy()
    return digests


class CacheReader:
    """Reads the caches of a folder of shards; the attributes `latents` and `text` are whether it has these."""

    def __init__(
        self, folder: Path, shards: Sequence[Path], sizes: Mapping[Path, int], what: Sequence[str], spare: Spare,
        tick: Tick,
    ) -> None:  # fmt: skip
        """`sizes` are those of all files, `spare` and `tick` as in `ShardDataset`."""
        self.latents, self.text = "latents" in what, "text" in what
        self._shards = shards
        self._texts = sorted(path for path in sizes if path.name.endswith(TEXT)) if self.text else []
        if self.text:
            files = {path: sizes[path] for path in self._texts}
            build = partial(build_prompt_index, self._texts, prompts_of, tick)
            self._prompts = PromptIndex(indexed(PROMPT_INDEX, files, folder, spare, build))

    def latent(self, shard: int, place: int) -> Tensor:
        """Latents (C, h, w), float32, of sample `place` of shard number `shard`."""
        path = self._shards[shard]
        with _opened(path.with_name(path.stem + LATENTS)) as file:
            latent: Tensor = file.get_slice("latents")[place].float()
        return latent

    def embedding(self, prompt: str) -> dict[str, Tensor]:
        """Embeddings of a prompt by name, float32."""
        sought = digest(prompt)
        for number, row in self._prompts.places(sought):
            with _opened(self._texts[number]) as file:
                if bytes(file.get_slice(PROMPTS)[row].tolist()) == sought:
                    names = [name for name in file.keys() if name != PROMPTS]  # noqa: SIM118
                    return {name: file.get_slice(name)[row].float() for name in names}
        raise DataError(f"--data: the text cache lacks the prompt {prompt[:60]!r}", REBUILD)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open safetensors file, whose tensors are read on demand; DataError if it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except Exception as error:
        raise DataError(f"--data: {path} cannot be read: {str(error).splitlines()[0]}", REBUILD) from None
