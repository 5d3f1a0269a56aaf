"""Draw one picture with ComfyUI's own code and with diffusers, from the same files and noise, and compare them.

    python docs/experiments/comfyui.py COMFYUI TEACHER EXPORT [--size 256]

COMFYUI is a checkout of ComfyUI (the folder that contains `comfy/`) whose requirements are installed; TEACHER a
pipeline folder of SDXL, or of SD3 without T5, of true size; EXPORT a folder that `flashdmd export` wrote with the
formats single-file and, if a LoRA is to be tried, lora-kohya (SDXL) or lora (SD3). ComfyUI loads the single file as
the node *Load Checkpoint* does, and the LoRA onto it as *LoraLoaderModelOnly* does, then samples as *KSampler* does
with `lcm`, `simple`, 4 steps and CFG 1. Its warnings (`lora key not loaded`) are counted. diffusers draws with the
export's scheduler.

Both programs get ComfyUI's tokenizer, because a teacher with random weights has another vocabulary, and the model's own
size as SDXL's size condition, which ComfyUI's node *CLIPTextEncodeSDXL* gives. Neither changes what is compared.
ComfyUI takes SD3's first text projection for the identity; here diffusers does too.
Without T5, ComfyUI leaves out the empty tokens that diffusers puts in its place: SD3 is drawn with and without them.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from transformers import CLIPTokenizer

PROMPT = "a photograph of a red fox in the snow"
OWN_SIZE, STEPS, T5_TOKENS = 1024, 4, 256

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("comfyui", type=Path)
parser.add_argument("teacher", type=Path)
parser.add_argument("export", type=Path)
parser.add_argument("--size", type=int, default=256)
given = parser.parse_args()
is_sd3 = (given.teacher / "transformer").is_dir()
single = next(path for path in given.export.glob("*.safetensors") if "lora" not in path.name)
lora = next(given.export.glob("*lora*.safetensors"), None)
shape = (1, 16 if is_sd3 else 4, given.size // 8, given.size // 8)
sys.path.insert(0, str(given.comfyui))
sys.argv = [
    sys.argv[0],
    "--fp16-unet",
    *([] if torch.cuda.is_available() else ["--cpu"]),
]  # the command line that ComfyUI reads
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402

from flashdmd_cli.families.files import read_json  # noqa: E402


def noises() -> tuple[Tensor, Callable[..., Tensor]]:
    """The first noise, and a function that draws that of the next step."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), lambda *_, **__: torch.randn(shape, generator=generator)


def load_diffusers() -> Any:
    """The stock pipeline with the networks of the single file, the export's scheduler and ComfyUI's tokenizer."""
    settings: dict[str, Any] = {"torch_dtype": torch.float32}
    scheduler = read_json(given.export / "scheduler/scheduler_config.json")["_class_name"]
    vocabulary = given.comfyui / "comfy/sd1_tokenizer"
    settings["scheduler"] = getattr(diffusers, scheduler).from_pretrained(given.export / "scheduler")
    settings["tokenizer"] = CLIPTokenizer.from_pretrained(vocabulary, model_max_length=77)
    settings["tokenizer_2"] = CLIPTokenizer.from_pretrained(vocabulary, model_max_length=77, pad_token="!")
    if not is_sd3:
        return diffusers.StableDiffusionXLPipeline.from_single_file(str(single), config=str(given.teacher), **settings)
    transformer = diffusers.SD3Transformer2DModel.from_single_file(
        str(single), config=str(given.teacher), subfolder="transformer", torch_dtype=torch.float32
    )
    settings |= {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(given.teacher, transformer=transformer, **settings)
    torch.nn.init.eye_(pipeline.text_encoder.text_projection.weight)
    return pipeline


def diffusers_picture(pipeline: Any) -> Tensor:
    """The picture (1, 3, H, W) of the stock pipeline, on [0, 1]."""
    first, following = noises()
    module: Any = sys.modules[type(pipeline.scheduler).__module__]
    drawn, module.randn_tensor = module.randn_tensor, following
    own = (OWN_SIZE, OWN_SIZE)
    try:
        picture: Tensor = pipeline(
            PROMPT, num_inference_steps=STEPS, guidance_scale=1.0, latents=first, height=given.size, width=given.size,
            output_type="pt", **({} if is_sd3 else {"original_size": own, "target_size": own}),
        ).images  # fmt: skip
    finally:
        module.randn_tensor = drawn
    return picture.float()


def comfyui_picture(model: Any, clip: Any, vae: Any, empty_tokens: int = 0) -> Tensor:
    """The picture (1, 3, H, W) of ComfyUI's KSampler, on [0, 1]; `empty_tokens` are added to the prompt's."""
    condition, pooled = clip.encode_from_tokens(clip.tokenize(PROMPT), return_pooled=True)
    condition = torch.nn.functional.pad(condition, (0, 0, 0, empty_tokens))
    sizes = {f"{prefix}{side}": OWN_SIZE for prefix in ("", "target_") for side in ("width", "height")}
    cond = [[condition, {"pooled_output": pooled, "crop_w": 0, "crop_h": 0, **sizes}]]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    print("ComfyUI's noise levels:", [round(value, 4) for value in sigmas.tolist()])
    first, following = noises()
    sampler = comfy.samplers.ksampler("lcm", {"noise_sampler": following})
    latents = comfy.sample.sample_custom(model, first, 1.0, sampler, sigmas, cond, cond, torch.zeros(shape), seed=0)
    picture: Tensor = vae.decode(latents)
    return picture.movedim(-1, 1).float()


def report(name: str, picture: Tensor, wanted: Tensor) -> None:
    error = (picture - wanted).abs()
    print(
        f"{name}: differs by {error.max():.2g} at most, {error.mean():.2g} on average; std {wanted.std():.2f}",
        flush=True,
    )


class Count(logging.Handler):
    """Counts and prints warnings."""

    number = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.number += 1
        if self.number < 10:
            print("ComfyUI:", record.getMessage())


counted = Count(logging.WARNING)
logging.getLogger().addHandler(counted)
with torch.inference_mode():
    empty = T5_TOKENS if is_sd3 else 0
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(single))
    found = comfyui_picture(model, clip, vae, empty)
    if is_sd3:
        without = comfyui_picture(model, clip, vae)
    print(counted.number, "warnings with the single file")
    if lora:
        counted.number = 0
        model, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(lora)), 1.0, 0.0)
        found_with_lora = comfyui_picture(model, clip, vae, empty)
        print(counted.number, "warnings with the LoRA", flush=True)
    comfy.model_management.unload_all_models()
    del model, clip, vae
    gc.collect()

    pipeline = load_diffusers()
    wanted = diffusers_picture(pipeline)
    report("single file", found, wanted)
    if is_sd3:
        report("single file, without empty tokens", without, wanted)
    if lora:
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
        report("single file and LoRA", found_with_lora, diffusers_picture(pipeline))
        report("with and without the LoRA, for comparison", found_with_lora, found)
