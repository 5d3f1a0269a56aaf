"""Training of both text encoders and their tokenizers, so that embeddings bind every attribute to its object.

CLIP's encoders learn this from pictures and captions; here the attributes of the captions are the labels, which needs
only seconds. The denoiser is trained afterwards with the frozen encoders, as SDXL's was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from flashdmd_cli.building.loop import train
from flashdmd_cli.families.reading import save_text_encoder
from flashdmd_cli.shapes.captions import WORDINGS, captions
from flashdmd_cli.shapes.world import ATTRIBUTES, COLORS, SHAPES, SURFACES, sample_attributes

BATCH = 256
MAX_LENGTH = 24


def _byte_symbols() -> list[str]:
    """The printable characters that byte-level BPE uses for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(256)]


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer with one token per word of the grammar; other words are split into letters."""
    wordings = " ".join(way for ways in WORDINGS.values() for way in ways)
    words = sorted({*SHAPES, *COLORS, *SURFACES, *wordings.split(), "an", "and"})
    tokens = [*_byte_symbols(), *(symbol + "</w>" for symbol in _byte_symbols())]
    merges: dict[tuple[str, str], int] = {}
    for word in words:
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            pairs = list(zip(symbols, symbols[1:], strict=False))
            # As in the tokenizer, the earliest merge is applied first; a new one is added only if none applies.
            pair = min(pairs, key=lambda pair: merges.get(pair, len(merges)))
            merges.setdefault(pair, len(merges))
            at = pairs.index(pair)
            symbols[at : at + 2] = ["".join(pair)]
            tokens.append(symbols[at])
    tokens = list(dict.fromkeys(tokens)) + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>", model_max_length=MAX_LENGTH
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _config(tokenizer: CLIPTokenizer, width: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, projection_dim=projection,
        num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=MAX_LENGTH, hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


class _Reader(nn.Module):
    """Both encoders, with heads that predict the attributes from the embeddings used by the denoiser."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.one = CLIPTextModel(_config(tokenizer, 64, 64))
        self.two = CLIPTextModelWithProjection(_config(tokenizer, 128, 128))
        sizes = [len(values) for values in ATTRIBUTES.values()]
        self.pooled = nn.ModuleList(nn.Linear(128, n) for n in sizes)
        self.last = nn.ModuleList(nn.Linear(192, n) for n in sizes)
        self.noun = nn.ModuleList(nn.Linear(192, n) for n in (*sizes[:3], 2))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        one = self.one(ids, output_hidden_states=True)
        two = self.two(ids, output_hidden_states=True)
        return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds


def _cross_entropy(heads: nn.ModuleList, features: Tensor, labels: Sequence[Tensor]) -> Tensor:
    """Sum of the cross-entropies of all heads on `features` (B, D)."""
    terms = [F.cross_entropy(head(features), label) for head, label in zip(heads, labels, strict=True)]
    return torch.stack(terms).sum()


def build_text(
    work: Path, out: Path, steps: int = 300, seed: int = 0, say: Callable[[str], None] = print
) -> dict[str, float]:
    """Train the encoders, write `tokenizer*` and `text_encoder*` under `out`; returns accuracy on held-out captions."""
    tokenizer = write_tokenizer(out / "tokenizer")
    write_tokenizer(out / "tokenizer_2")
    nouns = torch.tensor(tokenizer.convert_tokens_to_ids([f"{shape}</w>" for shape in SHAPES]))
    torch.manual_seed(seed)
    reader = _Reader(tokenizer)

    def tokens(attributes: Tensor, generator: torch.Generator | None) -> Tensor:
        texts = captions(attributes, generator)
        return tokenizer(texts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt").input_ids

    def loss_fn(generator: torch.Generator) -> dict[str, Tensor]:
        truth = sample_attributes(BATCH, generator)
        ids = tokens(truth, generator)
        hidden, pooled = reader(ids)
        end = (ids == tokenizer.eos_token_id).int().argmax(1)
        rows = torch.arange(BATCH)
        columns = truth.unbind(1)
        whole = _cross_entropy(reader.pooled, pooled, columns)
        last = _cross_entropy(reader.last, hidden[rows, end], columns)
        at_noun = hidden[torch.isin(ids, nouns)]  # (2B, 192): objects 1 and 2 of each caption, interleaved
        labels = [torch.stack([truth[:, k], truth[:, k + 3]], 1).flatten() for k in range(3)]
        labels.append(torch.arange(2).repeat(BATCH))
        noun = _cross_entropy(reader.noun, at_noun, labels)
        return {"loss": whole + last + noun, "pooled": whole, "noun": noun}

    average = train("text", reader, loss_fn, work, steps, lr=1e-3, seed=seed, say=say, ema_decay=0.99)
    save_text_encoder(average.one, out / "text_encoder")
    save_text_encoder(average.two, out / "text_encoder_2")
    with torch.no_grad():
        truth = sample_attributes(1000, torch.Generator().manual_seed(1), held_out=True)
        _, pooled = average(tokens(truth, None))
        correct = torch.stack([head(pooled).argmax(1) for head in average.pooled], 1) == truth
    return {"composition": correct.all(1).float().mean().item()}
