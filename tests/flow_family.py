"""A throw-away family: a tiny Stable Diffusion 3 with random weights. What a new family has to write, and no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchLCMScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from flashdmd_cli.core.grid import Grid, flow_grid
from flashdmd_cli.core.rollout import at
from flashdmd_cli.core.schedules import FlowSchedule, shifted
from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.families.base import Base, View
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.facts import DefaultRecipes, Facts
from flashdmd_cli.families.files import Source, read_json

SHIFT = 3.0
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}
FLOW = Facts(
    name="flow", pipeline="StableDiffusion3", hub_id="nobody/flow", size="1 MB", licenses={}, resolution=32,
    networks=("transformer", "vae", "text_encoder", "text_encoder_2"),
    settings=("tokenizer", "tokenizer_2", "scheduler"),
    encoders=("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    recipes=DefaultRecipes("none", "none", "none", "none"), module_name=__name__,
)  # fmt: skip


class FlowFamily:
    name, prediction, precision = FLOW.name, "v_prediction", "fp32"
    adapter_targets = ("to_q", "to_k", "to_v", "to_out.0")
    compiled_blocks = ("JointTransformerBlock",)

    def __init__(self, source: Path) -> None:
        self.pipeline = StableDiffusion3Pipeline.from_pretrained(source, **NO_T5)
        self.pipeline.set_progress_bar_config(disable=True)
        self.source, self.schedule, self.vae = str(source), FlowSchedule(SHIFT), self.pipeline.vae.requires_grad_(False)
        net = self.pipeline.transformer.eval().requires_grad_(False)
        self.base, self.tap_widths = Base(self, net), (net.inner_dim,)
        self.empty: Conditioning | None = None
        sizes = dimensions(source)
        self.resolution, self.latent_shape = sizes.resolution, sizes.latents

    teacher = property(lambda self: self.base.view())
    device = property(lambda self: self.base.device)
    tokenizers = property(lambda self: [self.pipeline.tokenizer, self.pipeline.tokenizer_2])

    def to(self, device):
        self.pipeline.to(device)
        return self

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=False)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        texts = list(prompts)
        if self.pipeline.text_encoder is None:
            return {name: torch.cat([self.kept[prompt][name] for prompt in texts]) for name in ("context", "pooled")}
        context, _, pooled, _ = self.pipeline.encode_prompt(
            texts, texts, texts, do_classifier_free_guidance=False, max_sequence_length=4
        )
        return {"context": context, "pooled": pooled}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(self.embed(prompts))

    def conditioning(self, text: Mapping[str, Tensor]) -> Conditioning:
        return Conditioning(text).to(self.device)

    def sized(self, cond: Conditioning, sizes: Tensor) -> Conditioning:
        raise Unfit("model.micro_conditioning: this family is not told sizes")

    def null(self, cond: Conditioning) -> Conditioning:
        if self.empty is None:
            self.empty = self.encode([""])
        return Conditioning({name: tensor.expand_as(cond[name]) for name, tensor in self.empty.items()})

    def call(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return net(x_t, cond["context"], cond["pooled"], t).sample.float()

    def tap(self, net: nn.Module, x_t: Tensor, t: Tensor, cond: Conditioning) -> list[Tensor]:
        seen: list[Tensor] = []
        hook = net.transformer_blocks[0].register_forward_hook(lambda module, args, output: seen.append(output[1]))
        try:
            self.call(net, x_t, t, cond)
        finally:
            hook.remove()
        return [seen[0].transpose(1, 2).unflatten(2, (x_t.shape[-2] // 2, x_t.shape[-1] // 2))]

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor + self.vae.config.shift_factor).sample

    @torch.no_grad()
    def checkpoint_decoder(self) -> None:
        self.vae.enable_gradient_checkpointing()

    def release_encoders(self, prompts: Sequence[str]) -> None:
        self.kept = {prompt: self.embed([prompt]) for prompt in (*prompts, "")}
        self.pipeline.text_encoder = self.pipeline.text_encoder_2 = None

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        mean = self.vae.encode(pictures).latent_dist.mean
        return (mean - self.vae.config.shift_factor) * self.vae.config.scaling_factor

    def grid(self, steps: int) -> Grid:
        return flow_grid(steps, SHIFT)

    def solve(self, denoise: Callable[[Tensor, Tensor], Tensor], steps: int, x: Tensor):
        sigmas = shifted(torch.linspace(1, 0, steps + 1), SHIFT).tolist()
        for now, following in zip(sigmas, sigmas[1:], strict=False):
            x = x + (following - now) * (x - denoise(x, at(1000 * now, x))) / now
        return x

    def load_student(self, folder: Path) -> View:
        return Base(self, SD3Transformer2DModel.from_pretrained(folder).requires_grad_(False)).view()

    def save_network(self, net: nn.Module, folder: Path) -> None:
        net.save_pretrained(folder)

    def save_pipeline(self, net: nn.Module, folder: Path, grid: Grid) -> None:
        parts = {**self.pipeline.components, "transformer": net, "scheduler": FlowMatchLCMScheduler(**grid.config)}
        StableDiffusion3Pipeline(**parts).save_pretrained(folder)


class LikesBright:
    """A reward model without weights: the mean of the latents."""

    timesteps, is_half = (0.0, 1000.0), False

    def encode(self, prompts: Sequence[str]):
        return _Texts(len(prompts))

    def score(self, latents: Tensor, t: Tensor, text, outside="refuse", guided=True) -> Tensor:
        return latents.flatten(1).mean(1) * 50

    def to(self, device):
        return self


class _Texts:
    def __init__(self, num: int) -> None:
        self.num = num

    def __len__(self) -> int:
        return self.num

    def repeat(self, times: int):
        return _Texts(self.num * times)


def load(source: Source, precision: str, weights: str) -> FlowFamily:
    return FlowFamily(source.weights)


def refuse(place: Path) -> None:
    if not (place / "transformer").is_dir():
        raise Unfit("has no transformer/")


refuse_vae = refuse


def dimensions(folder: Path) -> Dimensions:
    net, vae = (read_json(folder / part / "config.json") for part in ("transformer", "vae"))
    side, channels = net["sample_size"], net["in_channels"]
    text = {"context": (28, net["joint_attention_dim"]), "pooled": (net["pooled_projection_dim"],)}
    return Dimensions(side * 2 ** (len(vae["block_out_channels"]) - 1), (channels, side, side), text)


def grid(steps: int) -> Grid:
    return FlowFamily.grid(None, steps)  # type: ignore[arg-type]


def is_student(folder: Path) -> bool:
    return read_json(folder / "scheduler" / "scheduler_config.json")["_class_name"] == "FlowMatchLCMScheduler"


def load_reward(folder: Path, family: FlowFamily, dtype: torch.dtype) -> LikesBright:
    return LikesBright()
