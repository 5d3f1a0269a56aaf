"""One role of a run: its network with optimizer, gradient clipping and update counter, and its tensors in a state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from flashdmd_cli.core.shards import clip_gradients_, is_sharded, local
from flashdmd_cli.families.base import View
from flashdmd_cli.runs.checkpoint import difference, kinds, part_of, unfit
from flashdmd_cli.runs.errors import NumericalError
from flashdmd_cli.runs.tables import AdamW
from flashdmd_cli.runs.world import World

Net = TypeVar("Net", View, nn.Module)
MAX_BAD_UPDATES = 10
"""Consecutive updates with non-finite gradients after which a run ends with an error."""


class Role(Generic[Net]):
    """A network with its optimizer, gradient clipping and update counter."""

    def __init__(self, name: str, net: Net, lr: float, optim: AdamW, lr_key: str = "", owner: bool = True) -> None:
        """`lr_key` is the recipe key of `lr`, for messages; `owner` is false if another role saves the weights."""
        self.net: Net = net
        self.name, self.lr, self.optim, self.owner = name, lr, optim, owner
        self.lr_key = lr_key or f"optim.lr_{name}"
        self.parameters = parameters_of(net)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
        )
        self.updates = 0
        self.bad_updates = 0

    def update(self, factor: float = 1.0, world: World | None = None) -> float:
        """One optimizer step at `factor` times the learning rate, on accumulated gradients averaged over processes.

        Returns the gradient norm before clipping. A step with non-finite gradients is skipped; raises `NumericalError`
        after `MAX_BAD_UPDATES` in a row.
        """
        if world is not None:
            world.mean_gradients_(self.parameters)
        norm = clip_gradients_(self.parameters, self.optim.clip)
        if torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * factor
            self.optimizer.step()
            self.updates += 1
            self.bad_updates = 0
        else:
            self.bad_updates += 1
            if self.bad_updates >= MAX_BAD_UPDATES:
                raise NumericalError(
                    f"{self.lr_key}: {MAX_BAD_UPDATES} gradients in a row were not finite",
                    hint="use a lower value, or model.precision=fp32 instead of bf16, with another --out",
                )
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def tensors(self) -> dict[str, Tensor]:
        """Trainable parameters, buffers and optimizer moments, by dotted name."""
        moments = {
            f"{self.name}.optimizer.{index}.{key}": value
            for index, slots in self.optimizer.state_dict()["state"].items()
            for key, value in slots.items()
        }
        return self._weights() | moments

    def _weights(self) -> dict[str, Tensor]:
        return {f"{self.name}.net.{key}": v for key, v in trained(self.net).items()} if self.owner else {}

    def wanted(self, present: Iterable[str], updates: int) -> dict[str, str]:
        """Names and kinds of the tensors that a state after `updates` updates must have.

        A parameter without gradient has no moments, so moments are expected of those parameters only that have any of
        their names among `present`, the names in the state.
        """
        moments: dict[int, dict[str, str]] = {}
        for index, p in enumerate(self.parameters):
            slots = {"step": torch.tensor(0.0), "exp_avg": p, "exp_avg_sq": p}
            moments[index] = kinds({f"{self.name}.optimizer.{index}.{slot}": v for slot, v in slots.items()})
        names = set(present)
        reached = [rows for rows in moments.values() if not names.isdisjoint(rows)] or list(moments.values())
        return kinds(self._weights()) | {k: v for rows in reached if updates for k, v in rows.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors()` returned; `check_state` has to be called before."""
        assign(self._weights(), tensors)
        state: dict[int, dict[str, Tensor]] = {}
        prefix = f"{self.name}.optimizer."
        for key in tensors:
            if key.startswith(prefix):
                index, slot = key.removeprefix(prefix).split(".")
                parameter = self.parameters[int(index)]
                if slot == "step" or not is_sharded(parameter):
                    moment = tensors[key]
                else:
                    moment = torch.empty_like(parameter, requires_grad=False)
                    assign({key: moment}, tensors)
                state.setdefault(int(index), {})[slot] = moment
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})


def parameters_of(net: View | nn.Module) -> list[nn.Parameter]:
    """Parameters for the optimizer: a denoiser's own ones, or those of another network that are not frozen."""
    return net.parameters if isinstance(net, View) else [p for p in net.parameters() if p.requires_grad]


def trained(net: View | nn.Module) -> dict[str, Tensor]:
    """The tensors of `net` that a state contains: all but frozen weights, which have other sources. No copies."""
    if isinstance(net, View):
        return net.weights()
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    return {name: value for name, value in net.state_dict().items() if name not in frozen}


@torch.no_grad()
def assign(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy `values`, which are whole, into the tensors `live` of the same names, in place."""
    for name, tensor in live.items():
        local(tensor).copy_(part_of(values, name, tensor))


def fill(net: View | nn.Module, values: Mapping[str, Tensor], state: Path) -> None:
    """Load `values` from a state into `net`; InputError for a missing, unexpected or differently shaped tensor."""
    live = trained(net)
    if problem := difference(kinds(values), kinds(live)):
        raise unfit(state, problem, "--from")
    assign(live, values)
