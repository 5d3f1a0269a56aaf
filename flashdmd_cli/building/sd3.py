"""Training of the flow-matching teacher: a small SD3 transformer on the other parts of `shapes-sdxl`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from flashdmd_cli.building.loop import train
from flashdmd_cli.building.stream import Stream, caption_table
from flashdmd_cli.core.schedules import FlowSchedule, add_noise, shifted, velocity
from flashdmd_cli.core.weights import fit
from flashdmd_cli.families.conditioning import Conditioning
from flashdmd_cli.families.files import read_json
from flashdmd_cli.families.reading import read_network, renamed, save_pipeline
from flashdmd_cli.families.sd3.family import SD3Family
from flashdmd_cli.families.sd3.layout import SHIFT
from flashdmd_cli.families.sd3.reading import KINDS
from flashdmd_cli.families.sdxl.reading import KINDS as SDXL_KINDS
from flashdmd_cli.runs.device import Place

STEPS = 20_000
CAPTION_DROPOUT = 0.1
UNIFORM_TIMES = 0.2
WIDTH, HEAD, LAYERS, PATCH = 192, 32, 7, 2


def new_transformer(width: int = WIDTH, layers: int = LAYERS, patch: int = PATCH) -> SD3Transformer2DModel:
    """SD3's architecture with 1/220 of its parameters, and the normalised queries and keys of SD3.5.

    With patches of 2 x 2 latents it costs a third of `shapes-sdxl`'s denoiser; with single latents as much.
    """
    net = SD3Transformer2DModel(
        sample_size=16,
        patch_size=patch,
        in_channels=8,
        out_channels=8,
        num_layers=layers,
        attention_head_dim=HEAD,
        num_attention_heads=width // HEAD,
        joint_attention_dim=192,
        caption_projection_dim=width,
        pooled_projection_dim=192,
        pos_embed_max_size=16 // patch,
        qk_norm="rms_norm",
    )
    # Every block begins as the identity, and the output as zero (adaLN-Zero: Peebles & Xie 2023), which trains faster.
    modulations = [
        getattr(block, name).linear for block in net.transformer_blocks for name in ("norm1", "norm1_context")
    ]
    for layer in (*modulations, net.norm_out.linear, net.proj_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return net


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """SD3's schedule."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def with_projection(encoder: CLIPTextModel) -> CLIPTextModelWithProjection:
    """The first text encoder with the identity as projection, which is how SD3 extends CLIP-L."""
    width = encoder.config.hidden_size
    config = CLIPTextConfig(**{**encoder.config.to_dict(), "architectures": None, "projection_dim": width})
    tensors = {**encoder.state_dict(), "text_projection.weight": torch.eye(width)}
    grown = CLIPTextModelWithProjection(config)
    return fit(grown, renamed(tensors, grown.state_dict().keys())).eval()


def new_pipeline(source: Path, transformer: SD3Transformer2DModel) -> StableDiffusion3Pipeline:
    """A stock pipeline with this transformer and the other networks of the SDXL teacher in `source`."""
    read = {part: read_network(SDXL_KINDS[part], source / part) for part in ("vae", "text_encoder", "text_encoder_2")}
    read["vae"].register_to_config(shift_factor=0.0)  # stock SD3 pipelines need a number
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=new_scheduler(),
        vae=read["vae"],
        text_encoder=with_projection(read["text_encoder"]),
        tokenizer=CLIPTokenizer.from_pretrained(source / "tokenizer"),
        text_encoder_2=read["text_encoder_2"],
        tokenizer_2=CLIPTokenizer.from_pretrained(source / "tokenizer_2"),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def embed_ids(pipeline: Any, ids: Tensor) -> dict[str, Tensor]:
    """The family's text embeddings for token ids (B, L) that both tokenizers give alike."""
    one, two = (net(ids, output_hidden_states=True) for net in (pipeline.text_encoder, pipeline.text_encoder_2))
    context = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
    # The last token stands for those of the absent T5.
    context = nn.functional.pad(context, (0, 0, 0, 1))
    return {"context": context, "pooled": torch.cat([one.text_embeds, two.text_embeds], dim=-1)}


def sample_times(num: int, generator: torch.Generator) -> Tensor:
    """Noise levels (B,) in thousandths: logit-normal before the shift (Esser et al. 2024), a fifth of them uniform.

    With the shift alone, only one level in forty would lie below 0.3, where a picture's texture is drawn.
    """
    device = generator.device
    normal = torch.randn(num, generator=generator, device=device)
    uniform, choice = (torch.rand(num, generator=generator, device=device) for _ in range(2))
    return 1000 * torch.where(choice < UNIFORM_TIMES, uniform, shifted(normal.sigmoid(), SHIFT))


def build_sd3(
    work: Path,
    out: Path,
    steps: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    *,
    source: Path,
    place: Place | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    chunks: int = 128,
    compiled: bool | None = None,
    transformer: SD3Transformer2DModel | None = None,
) -> StableDiffusion3Pipeline:
    """Train the transformer and write the complete teacher to `out`, with the other parts of the one in `source`.

    The training ends after `steps` or `minutes`, whichever is over first (neither: 20,000 steps); by then the learning
    rate has decayed. `chunks` batches of pictures are there at a time; every 16 steps a new one replaces the oldest.
    `compiled` fuses the operations of each block; by default that and a larger batch are for GPUs. The environment
    variable TORCHDYNAMO_DISABLE=1 turns the former off.
    """
    place = place or Place()
    device = torch.device(place.device)
    if steps is None and minutes is None:
        steps = STEPS
    on_gpu = device.type == "cuda"
    batch = batch or (1024 if on_gpu else 64)
    torch.manual_seed(seed)
    net = transformer or new_transformer()
    pipeline = new_pipeline(source, net)
    family = SD3Family(pipeline, str(out), place.precision).to(device)
    tokenizer = pipeline.tokenizer
    length = tokenizer.model_max_length
    say("sd3: tokens of all captions")
    table = caption_table(
        lambda texts: tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").input_ids
    )
    stream = Stream(
        family.encode_pictures, lambda ids: embed_ids(pipeline, ids), table, device, chunks, batch, every=16, seed=seed
    )
    empty = {name: tensor.float() for name, tensor in family.embed([""]).items()}
    schedule = FlowSchedule(SHIFT)
    net.requires_grad_(True)
    if on_gpu if compiled is None else compiled:
        torch._dynamo.config.suppress_errors = True  # without a compiler, blocks run as they are
        for block in net.transformer_blocks:
            block.compile()

    def loss_fn(generator: torch.Generator) -> dict[str, Tensor]:
        rows = stream.rows(torch.randint(len(stream), (batch,), generator=generator, device=device))
        x0 = rows.pop("latents")
        drop = torch.rand(batch, generator=generator, device=device) < CAPTION_DROPOUT
        cond = Conditioning(
            {name: torch.where(drop.view(-1, *(1,) * (x.ndim - 1)), empty[name], x) for name, x in rows.items()}
        )
        t = sample_times(batch, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        output = family.call(net, add_noise(schedule, x0, noise, t), t, cond)
        return {"loss": (output - velocity(schedule, x0, noise, t)).square().mean()}

    say(f"sd3: {len(stream)} pictures")
    net = train(
        "sd3", net, loss_fn, work, steps, lr=1e-3, seed=seed, say=say, before=stream.advance,
        seconds=None if minutes is None else 60 * minutes,
    )  # fmt: skip
    return write_teacher(out, net, source)


def write_teacher(out: Path, net: SD3Transformer2DModel, source: Path) -> StableDiffusion3Pipeline:
    """Write the complete teacher to `out`, in half precision: this transformer, the other parts of that in `source`."""
    pipeline = new_pipeline(source, net.cpu())
    for part in KINDS:
        getattr(pipeline, part).half()
    save_pipeline(pipeline, out)
    for part in ("text_encoder", "text_encoder_2"):
        # transformers loads in the format that the configuration names; all that is computed here is in float32.
        path = out / part / "config.json"
        path.write_text(json.dumps({**read_json(path), "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    return pipeline
