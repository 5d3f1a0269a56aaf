"""Write a student with the linear layers of its denoiser in 8 bits by torchao, through diffusers' own loader.

    pip install torchao
    python docs/experiments/torchao_int8.py runs/student OUT

OUT/int8 is the denoiser as `save_pretrained` writes it, read by `from_pretrained` where torchao is installed.
OUT/student is a result folder for `flashdmd eval`, with the weights that diffusers reads from OUT/int8. Prints sizes,
the error of the weights, and the seconds of a forward pass.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import TorchAoConfig
from torchao.quantization import Int8WeightOnlyConfig

from flashdmd_cli.families.files import read_json
from flashdmd_cli.runs.manifest import read_manifest, write_manifest

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("student", type=Path)
parser.add_argument("out", type=Path)
given = parser.parse_args()
folder = given.student / "student"
kind: Any = getattr(diffusers, read_json(folder / "config.json")["_class_name"])
whole = kind.from_pretrained(folder, dtype=torch.float32)
config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
kind.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16).save_pretrained(given.out / "int8")
rounded = kind.from_pretrained(given.out / "int8", dtype=torch.bfloat16)


def seconds(net: Any, dtype: torch.dtype) -> float:
    """Of a forward pass with a batch of 8: the least of 5."""
    torch.manual_seed(0)
    size, channels = net.config.sample_size, net.config.in_channels
    x, t = torch.randn(8, channels, size, size, dtype=dtype), torch.full((8,), 500.0)
    if kind is diffusers.UNet2DConditionModel:
        added = {
            "text_embeds": torch.randn(
                8, net.add_embedding.linear_1.in_features - 6 * net.config.addition_time_embed_dim
            ),
            "time_ids": torch.zeros(8, 6),
        }
        context = torch.randn(8, 32, net.config.cross_attention_dim, dtype=dtype)
        run = lambda: net(x, t, context, added_cond_kwargs={k: v.to(dtype) for k, v in added.items()})  # noqa: E731
    else:
        context = torch.randn(8, 32, net.config.joint_attention_dim, dtype=dtype)
        pooled = torch.randn(8, net.config.pooled_projection_dim, dtype=dtype)
        run = lambda: net(x, context, pooled, t)  # noqa: E731
    found = []
    with torch.no_grad():
        for _ in range(5):
            begin = time.perf_counter()
            run()
            found.append(time.perf_counter() - begin)
    return min(found)


weights = whole.state_dict()
read = {
    name: (value.dequantize() if hasattr(value, "qdata") else value).float()
    for name, value in rounded.state_dict().items()
}
num_values = sum(value.numel() for value in weights.values())
in_linear = sum(layer.weight.numel() for layer in whole.modules() if isinstance(layer, torch.nn.Linear))
error = sum((read[name] - value).square().sum().item() for name, value in weights.items())
error = (error / sum(value.square().sum().item() for value in weights.values())) ** 0.5
num_bytes = sum(path.stat().st_size for path in (given.out / "int8").glob("*.safetensors"))
print(f"{num_values} values, {in_linear / num_values:.1%} in linear layers; relative error of the weights {error:.5f}")
print(f"bytes: fp32 {4 * num_values}, fp16 {2 * num_values}, int8 {num_bytes}")
for name, net, dtype in (
    ("fp32", whole, torch.float32),
    ("int8", rounded, torch.bfloat16),
    ("bf16", kind.from_pretrained(folder, dtype=torch.bfloat16), torch.bfloat16),
):
    print(f"{name}: {seconds(net, dtype):.3f} s")
(given.out / "student/student").mkdir(parents=True)
net = kind.from_config(whole.config)
net.load_state_dict(read)
net.save_pretrained(given.out / "student/student")
for path in given.student.iterdir():
    if path.suffix in (".yaml", ".json") and path.name != "manifest.json":
        shutil.copy(path, given.out / "student")
write_manifest(given.out / "student", read_manifest(given.student).model_copy(update={"files": []}))
