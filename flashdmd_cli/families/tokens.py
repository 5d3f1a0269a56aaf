"""Detection of prompts that a teacher's tokenizers truncate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

_BATCH = 1000


def load_tokenizers(pipeline: Path, parts: Iterable[str]) -> list[Any]:
    """The tokenizers in the subfolders `parts` of a pipeline folder."""
    from transformers import AutoTokenizer

    return [AutoTokenizer.from_pretrained(pipeline / name) for name in parts]


def cut_short(tokenizers: Sequence[Any], prompts: Iterable[str]) -> str | None:
    """A warning with the number of prompts that exceed the tokenizers' maximum length; None if all fit."""
    stream = iter(prompts)
    limit = min(tokenizer.model_max_length for tokenizer in tokenizers)
    total = cut = 0
    while batch := list(islice(stream, _BATCH)):
        total += len(batch)
        lengths = [tokenizer(batch, verbose=False)["input_ids"] for tokenizer in tokenizers]
        cut += sum(max(map(len, ids)) > limit for ids in zip(*lengths, strict=True))
    if not cut:
        return None
    return (
        f"warning: {cut} of {total} prompts exceed the {limit} tokens that the teacher reads; their ends do not count"
    )
