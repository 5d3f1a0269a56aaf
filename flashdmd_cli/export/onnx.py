"""Export as ONNX files, which onnxruntime and other runtimes execute without PyTorch.

One file for each network, by `torch.onnx` through `torch.export`. Their names are those of ONNX pipelines on the hub:
`unet/model.onnx` (`transformer/model.onnx`), `vae_decoder/model.onnx`, `text_encoder/model.onnx`. Weights of more than
2 GB, the limit of ONNX's format, are in a second file beside it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from flashdmd_cli.core.unfit import Unfit
from flashdmd_cli.export.diffusers import scheduler, settings_files
from flashdmd_cli.export.job import File, Job
from flashdmd_cli.export.loading import load_teacher, with_grid
from flashdmd_cli.families.files import read_json
from flashdmd_cli.families.parts import INDEX

OPSET = 18
IN_ONE_FILE = 1_900_000_000
"""Bytes of weights up to which they are in the same file as the graph."""
GRAPH = 2_000_000
"""Bytes of a large network's graph without its weights, about."""
DECODER = ("decoder.", "post_quant_conv.")
"""Beginnings of the names of an autoencoder's tensors that decode."""
INPUTS = {
    "unet": ("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"),
    "transformer": ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"),
}
"""Denoiser -> names of its inputs, all with the batch as their first dimension."""
EXAMPLES = 2
"""Batch of the inputs that a network is traced with; a batch of one would be taken for a constant."""


@dataclass(frozen=True)
class Traced:
    """A network to be traced: a module of tensors only, with examples and names of its inputs and outputs."""

    part: str
    module: nn.Module
    examples: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _Unet(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": time_ids}
        found: Tensor = self.net(x, t, context, added_cond_kwargs=added, return_dict=False)[0]
        return found


class _Transformer(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor, pooled: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.net(x, context, pooled, t, return_dict=False)[0]
        return found


class _Decoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        found: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return found


class _Clip(nn.Module):
    """A text encoder as diffusion models use it: the hidden states before the last layer, and the pooled output."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        found = self.encoder(input_ids, output_hidden_states=True)
        pooled = found.text_embeds if hasattr(found, "text_embeds") else found.pooler_output
        return found.hidden_states[-2], pooled


def files(job: Job) -> list[File]:
    """One file for each network, with the tokenizers and the scheduler."""
    text = job.facts.module.dimensions(job.source.folder).text
    if job.denoiser not in INPUTS or "text_encoder_2" not in job.networks or "pooled" not in text:
        raise Unfit(f"{job.facts.name} has no ONNX export", "export it with --format diffusers")
    if "text_encoder_3" in job.networks:
        raise Unfit("the third text encoder is not exported", "leave it out of the teacher's folder")
    parts = [job.denoiser, "vae_decoder", "text_encoder", "text_encoder_2"]
    found = [file for part in parts for file in _files(job, part)]
    settings = [name for name in job.settings if name != "scheduler"]
    copies = [file for name in settings for file in settings_files(job.source.folder / name, name)]
    return [*found, *copies, scheduler(job)]


def dtype(job: Job) -> str:
    return "fp32"


def is_exact(job: Job) -> bool:
    return True


def _files(job: Job, part: str) -> list[File]:
    """The file of a network, with its weights in a second one where they are large; sizes from the weights alone."""
    tensors = job.tensors("vae" if part == "vae_decoder" else part)
    used = [value for name, value in tensors.items() if part != "vae_decoder" or name.startswith(DECODER)]
    num_bytes = 4 * sum(math.prod(value.shape) for value in used)
    is_large = num_bytes > IN_ONE_FILE
    path, write = f"{part}/model.onnx", lambda at: write_onnx(traced(job, part), at, is_large)
    if not is_large:
        return [File(path, num_bytes, write, is_estimate=True)]
    weights = File(f"{path}.data", num_bytes, lambda at: None, is_estimate=True)  # written together with the graph
    return [File(path, GRAPH, write, is_estimate=True), weights]


def traced(job: Job, part: str) -> Traced:
    """One network of the student's pipeline in float32, with examples of its inputs."""
    if part == job.denoiser:
        name = read_json(job.source.folder / INDEX)[part][1]
        net: Any = getattr(diffusers, name).from_pretrained(job.student, dtype=torch.float32).eval()
        return Traced(
            part, _Unet(net) if part == "unet" else _Transformer(net), _examples(job, net), INPUTS[part], ("out",)
        )
    family: Any = job.facts.module.load(job.source, "fp32", job.check_dtype)
    if part == "vae_decoder":
        latents = torch.randn(EXAMPLES, *family.latent_shape)
        return Traced(part, _Decoder(family.pipeline.vae), (latents,), ("latent_sample",), ("sample",))
    encoder = getattr(family.pipeline, part)
    ids = torch.ones(EXAMPLES, encoder.config.max_position_embeddings, dtype=torch.int64)
    ids[:, -1] = encoder.config.eos_token_id
    return Traced(part, _Clip(encoder), (ids,), ("input_ids",), ("hidden_states", "pooled"))


def _examples(job: Job, net: Any) -> tuple[Tensor, ...]:
    """Inputs of the denoiser, in the order of `INPUTS`, for pictures of the model's own size."""
    sizes = job.facts.module.dimensions(job.source.folder)
    x, t = torch.randn(EXAMPLES, *sizes.latents), torch.full((EXAMPLES,), 500.0)
    tokens, width = sizes.text["context"]
    if job.denoiser == "unet":
        pooled = torch.randn(EXAMPLES, *sizes.text["pooled"])
        return x, t, torch.randn(EXAMPLES, tokens, width), pooled, torch.full((EXAMPLES, 6), float(sizes.resolution))
    return x, torch.randn(EXAMPLES, tokens + 7, width), torch.randn(EXAMPLES, *sizes.text["pooled"]), t


def write_onnx(net: Traced, path: Path, is_large: bool) -> None:
    """Trace a network and write it, with its weights in a second file if they are large; the batch, and the number of
    tokens of a context, may vary in use."""
    batch = torch.export.Dim("batch", min=1)
    shapes: list[dict[int, Any]] = [{0: batch} for _ in net.examples]
    if net.part == "transformer":
        shapes[1][1] = torch.export.Dim("tokens", min=2)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.module.eval(), net.examples, path, dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(net.inputs), output_names=list(net.outputs), dynamic_shapes=tuple(shapes),
            external_data=is_large,
        )  # fmt: skip


def load(job: Job, out: Path) -> Any:
    """The stock pipeline, whose networks are replaced by sessions of onnxruntime."""
    pipeline = with_grid(load_teacher(job), out, job)
    denoise = _session(out / job.denoiser / "model.onnx")
    decode = _session(out / "vae_decoder" / "model.onnx")

    def denoised(*args: Tensor, **named: Any) -> tuple[Tensor]:
        named |= dict(zip(("sample", "timestep"), args, strict=False))
        values = named | (named.get("added_cond_kwargs") or {})
        batch = len(values[INPUTS[job.denoiser][0]])
        values["timestep"] = values["timestep"].float().expand(batch)
        return (denoise([values[name].float() for name in INPUTS[job.denoiser]])[0],)

    getattr(pipeline, job.denoiser).forward = denoised
    pipeline.vae.decode = lambda latents, **_: (decode([latents])[0],)
    for part in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipeline, part)
        encoder.forward = _encoder(_session(out / part / "model.onnx"), "WithProjection" in type(encoder).__name__)
    return pipeline


class _Encoded(SimpleNamespace):
    """The output of a text encoder, as diffusers' pipelines take it apart."""

    def __getitem__(self, index: int) -> Tensor:
        found: Tensor = self.first
        return found


def _encoder(run: Callable[[Sequence[Tensor]], list[Tensor]], has_projection: bool) -> Callable[..., _Encoded]:
    def encoded(input_ids: Tensor, **_: Any) -> _Encoded:
        hidden, pooled = run([input_ids])
        # The first output of an encoder without projection is not its pooled one, which SDXL's pipeline does not use.
        return _Encoded(hidden_states=[hidden, hidden], first=pooled if has_projection else hidden)

    return encoded


def _session(path: Path) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """A function that runs an ONNX file on the CPU with its inputs in order."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors only
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(values: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: value.detach().cpu().numpy() for name, value in zip(names, values, strict=True)}
        return [torch.from_numpy(each) for each in session.run(None, feed)]

    return run
