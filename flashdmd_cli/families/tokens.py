"""How long a prompt is to the tokenizers of a teacher, which cut the end off what is longer than they read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

_BATCH = 1000


def load_tokenizers(pipeline: Path, parts: Iterable[str]) -> list[Any]:
    """The tokenizers in some folders of a pipeline, without its networks."""
    from transformers import AutoTokenizer

    return [AutoTokenizer.from_pretrained(pipeline / name) for name in parts]


def cut_short(tokenizers: Sequence[Any], prompts: Iterable[str]) -> str | None:
    """One line that says how many prompts are longer than a tokenizer reads; None when all of them fit."""
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
