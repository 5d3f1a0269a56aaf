"""Tokens of prompts, and features of prompts that are computed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def clip_tokenizer() -> Any:
    """CLIP's tokenizer as transformers implements it, with the vocabulary that open_clip installs, so that no download
    is needed. Every CLIP of OpenAI and LAION has this vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    plain = SimpleTokenizer()
    merges: Any = [tuple(pair) for pair in plain.bpe_ranks]
    # open_clip names the first and last token of a prompt in its own way.
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in plain.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def clip_tokens(prompts: Sequence[str]) -> Tensor:
    """Tokens (B, 77) of transformers' CLIP, cut at 77 with the end kept, padded with the end token."""
    found = clip_tokenizer()(list(prompts), padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    tokens: Tensor = found.input_ids
    return tokens


class TextFeatures:
    """Features of prompts, each distinct prompt computed once; the least recently used are dropped above `limit`."""

    def __init__(self, encode: Callable[[Sequence[str]], Tensor], limit: int = 50_000) -> None:
        self.encode = encode
        self.limit = limit
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Features of `B` prompts, (B, ...)."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if new:
            # Cloned, so that keeping one does not keep the whole batch.
            self._known.update(zip(new, (row.clone() for row in self.encode(new)), strict=True))
        for prompt in dict.fromkeys(prompts):
            self._known.move_to_end(prompt)
        found = torch.stack([self._known[prompt] for prompt in prompts])
        while len(self._known) > self.limit:
            self._known.popitem(last=False)
        return found
