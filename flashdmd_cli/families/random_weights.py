"""Networks with random weights: speed and memory of a training do not depend on the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn


def new_random(kind: Any, config: dict[str, Any], device: torch.device) -> Any:
    """A diffusers network of class `kind` on `device` with random weights; its buffers are computed as always."""
    with init_empty_weights(include_buffers=False):
        net = kind.from_config(config)
    computed = dict(net.named_buffers())
    net.to_empty(device=device)
    for name, buffer in net.named_buffers():
        buffer.copy_(computed[name])
    return randomize(net)


@torch.no_grad()
def randomize(net: nn.Module) -> nn.Module:
    """Draw the weights of `net` so that activations keep their size: normal / sqrt(inputs), norms 1, biases 0."""
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return net
