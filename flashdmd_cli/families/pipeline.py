"""The part of a family that is the same for every stock diffusers pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.base import Base, View
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.memory import free_memory


class PipelineFamily:
    """A stock pipeline, frozen, in eval mode; subclasses set the attributes and define `_embed` and `conditioning`."""

    name: str
    pipeline: Any
    base: Base
    precision: str
    encoders: tuple[str, ...]
    """Names of the pipeline's text encoders."""
    _kept: dict[str, dict[str, Tensor]] | None = None
    """Embeddings by prompt, once the encoders are released."""
    _nothing: dict[str, Tensor] | None = None
    """The embeddings of "", once they are needed."""

    @property
    def teacher(self) -> View:
        """The original denoiser, without adapters."""
        return self.base.view()

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def tokenizers(self) -> list[Any]:
        """The tokenizers of the text encoders that the pipeline has."""
        named = (getattr(self.pipeline, name.replace("text_encoder", "tokenizer")) for name in self.encoders)
        return [tokenizer for tokenizer in named if tokenizer is not None]

    def to(self, device: torch.device | str) -> Self:
        """Move every component."""
        self.pipeline.to(device)
        return self

    def autocast(self) -> torch.autocast:
        """Context for forward passes in the family's precision; pictures for display are decoded without it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def freeze_encoders(self) -> None:
        """Put the text encoders that the pipeline has into eval mode, without gradients."""
        for name in self.encoders:
            if (encoder := getattr(self.pipeline, name)) is not None:
                encoder.eval().requires_grad_(False)

    def release_encoders(self, prompts: Sequence[str]) -> None:
        """Free the memory of the text encoders; afterwards only these prompts and "" can be encoded."""
        self.keep({prompt: self.embed([prompt]) for prompt in (*prompts, "")})
        for name in self.encoders:
            setattr(self.pipeline, name, None)
        free_memory()

    def keep(self, embeddings: dict[str, dict[str, Tensor]]) -> None:
        """Use these embeddings, by prompt, instead of the text encoders."""
        self._kept = embeddings

    def checkpoint_decoder(self) -> None:
        """Recompute the decoder's activations in backward passes: they take more memory than the denoiser's."""
        self.pipeline.vae.enable_gradient_checkpointing()

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning for prompts, for uncropped square pictures."""
        return self.conditioning(self.embed(prompts))

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Text embeddings of B prompts by name, (B, ...)."""
        if self._kept is None:
            return self._embed(list(prompts))
        rows = [self._kept[prompt] for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _embed(self, prompts: list[str]) -> dict[str, Tensor]:
        """What the text encoders make of prompts."""
        raise NotImplementedError

    def conditioning(self, text: Mapping[str, Tensor]) -> Conditioning:
        """Conditioning from the embeddings of `embed`."""
        raise NotImplementedError

    def sized(self, cond: Conditioning, sizes: Tensor) -> Conditioning:
        """Raises Unfit: most denoisers have no such input."""
        raise Unfit(f"model.micro_conditioning: {self.name} takes no picture sizes", "leave it at its default")

    def null(self, cond: Conditioning) -> Conditioning:
        """The unconditional input of most stock pipelines: the embeddings of "", everything else as in `cond`."""
        if self._nothing is None:
            self._nothing = self.embed([""])
        return cond.replace(**{name: row.to(cond[name]).expand_as(cond[name]) for name, row in self._nothing.items()})

    def content_hash(self) -> str:
        """SHA-256 of the denoiser's weights, rounded to bfloat16: the same in every format that they are stored in."""
        digest = hashlib.sha256()
        for name, value in sorted(self.teacher.weights().items()):
            digest.update(name.encode())
            rounded = value.detach().to("cpu", torch.bfloat16).contiguous()
            digest.update(rounded.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save_network(self, net: nn.Module, folder: Any) -> None:
        """Write a denoiser as a stock diffusers folder."""
        net.save_pretrained(folder)  # type: ignore[operator]
