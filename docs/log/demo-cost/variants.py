"""Two ways to run the same network, timed in turns in one process.   variants.py fp32|bf16

Median seconds of the processor, so that work beside it hardly counts: run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
from flashdmd_cli.models.discriminator import PixelDiscriminator, load_sam_encoder
from flashdmd_cli.models.sdxl import SDXLFamily
from flops import CAPTION

from flashdmd_cli.core.rollout import at
from flashdmd_cli.shapes.assets import asset

N = 24


def compare(name: str, ways: dict[str, Callable[[], object]], rounds: int = 3) -> None:
    """Call each way in turn; the first round warms up."""
    seen: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, call in ways.items():
            began = time.process_time()
            call()
            seen[way].append(time.process_time() - began)
    print(f"{name:34s}", "   ".join(f"{way} {statistics.median(s[1:]):.3f}" for way, s in seen.items()), flush=True)


def main() -> None:
    precision = sys.argv[1]
    print(
        precision, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), "threads,", N, "pictures, seconds"
    )
    family = SDXLFamily.load(asset("shapes-sdxl"), precision)
    x, cond = torch.randn(N, *family.latent_shape), family.encode([CAPTION] * N)
    t = at(500, x)
    net = family.new_network()
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    xl = x.contiguous(memory_format=torch.channels_last)

    def forward(net: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return family.predict_x0(net, x, t, cond)

        return call

    def learn(net: torch.nn.Module, x: torch.Tensor) -> Callable[[], object]:
        def call() -> object:
            family.predict_x0(net, x, t, cond).square().mean().backward()
            return net.zero_grad()

        return call

    compare("denoiser forward", {"contiguous": forward(net, x), "channels_last": forward(last, xl)})
    compare("denoiser forward + backward", {"contiguous": learn(net, x), "channels_last": learn(last, xl)})

    vae = copy.deepcopy(family.vae)
    vae_last = copy.deepcopy(vae).to(memory_format=torch.channels_last)

    def decode(vae: torch.nn.Module, x: torch.Tensor, grad: bool) -> Callable[[], object]:
        def call() -> object:
            with family.autocast(), torch.set_grad_enabled(grad):
                leaf = x.detach().requires_grad_(grad)
                y = vae.decode(leaf).sample
                return y.float().mean().backward() if grad else y

        return call

    compare("decode", {"contiguous": decode(vae, x, False), "channels_last": decode(vae_last, xl, False)})
    compare("decode with gradient", {"contiguous": decode(vae, x, True), "channels_last": decode(vae_last, xl, True)})

    heads = PixelDiscriminator(load_sam_encoder(asset("shapes-sam")), precision=precision)
    heads_last = copy.deepcopy(heads)
    heads_last.heads.to(memory_format=torch.channels_last)
    with torch.no_grad():
        features = heads.look(torch.rand(N, 3, 64, 64))

    def judge(d: torch.nn.Module) -> Callable[[], object]:
        return lambda: sum(logits.mean() for logits in d(features)).backward()  # type: ignore[union-attr]

    half = copy.deepcopy(heads).heads

    def judge_half() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return sum(head(f).float().mean() for head, f in zip(half, features, strict=True)).backward()

    ways = {"contiguous": judge(heads), "channels_last": judge(heads_last)}
    compare("heads, forward + backward", ways | ({"bf16": judge_half} if precision == "bf16" else {}))

    params = [[p.detach().clone().requires_grad_() for p in net.parameters()] for _ in range(3)]
    steps = {}
    for way, rows, keys in zip(
        ("for", "foreach", "fused"), params, ({"foreach": False}, {"foreach": True}, {"fused": True}), strict=True
    ):
        for p in rows:
            p.grad = torch.randn_like(p)
        steps[way] = torch.optim.AdamW(rows, lr=1e-5, **keys).step
    compare("AdamW step", steps)
    compare("text encoders", {"as is": lambda: family.encode([CAPTION] * N)})


if __name__ == "__main__":
    main()
