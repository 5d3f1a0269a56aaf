"""The cost of each part of a training step on one picture, and the sizes of the networks, counted on the meta device.

What is run are the functions of `training.distill` and `training.steps` themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import torch
from segment_anything import sam_model_registry
from torch import Tensor, nn

from flashdmd_cli.families.family import Family
from flashdmd_cli.families.registry import family_named
from flashdmd_cli.networks.heads import LatentDiscriminator, PixelDiscriminator
from flashdmd_cli.networks.sam import load_sam_encoder, new_sam
from flashdmd_cli.runs.recipe import Recipe
from flashdmd_cli.shapes.assets import asset
from flashdmd_cli.training.distill import StudentOutput, adversarial, discriminator_loss
from flashdmd_cli.training.draws import Draws
from flashdmd_cli.training.metrics import StepMetrics
from flashdmd_cli.training.networks import Networks, new_networks
from flashdmd_cli.training.roles import parameters_of
from flashdmd_cli.training.steps import Objective
from flashdmd_cli.workflows.bench import RandomData
from flashdmd_cli.workflows.plan.meta import META, Cost, Meter


@dataclass(frozen=True)
class Sizes:
    """Bytes of everything that has the same size for any batch, and numbers of parameters."""

    parameters: int
    """Of the denoiser."""
    trainable: int
    """Parameters of student, fake score and discriminator."""
    weights: int
    """Bytes of all weights, averages included."""
    averages: int
    """Bytes of the student's average, 0 without one."""
    student: int
    """Trainable parameters of the student; the fake score has as many."""
    heads: int
    """Trainable parameters of the discriminator."""
    cached: int
    """Bytes of the cached latents and text embeddings of a picture, in bfloat16."""


@dataclass(frozen=True)
class Counts:
    """Costs of the parts of a training step, for one picture."""

    sizes: Sizes
    forward: Cost
    """The student's forward pass with gradient; what it keeps stays until `backward`."""
    backward: Cost
    scores: Cost
    """Teacher with guidance, and fake score, in the distribution-matching loss."""
    adversarial: Cost
    """The student's adversarial loss and its gradient with respect to the student's output."""
    decoder: Cost
    """Of it, decoding and its gradient; no operations without a pixel GAN."""
    views: Cost
    """The part of `adversarial` that iterations without a student update still need."""
    discriminator: Cost
    """The discriminator's loss and its gradients."""
    output: int
    """Bytes of a picture, its conditioning and its features that are kept until the end of an iteration."""
    preview: Cost
    """Decoding a picture for a preview, in float32."""


def count(recipe: Recipe, precision: str, resolution: int = 1024, small: bool = False) -> Counts:
    """The costs of `recipe` for pictures of `resolution` pixels; counted once for all recipes that differ in nothing
    that a cost depends on."""
    return _count(_key(recipe), precision, resolution, small)


def sizes(recipe: Recipe, precision: str, resolution: int = 1024, small: bool = False) -> Sizes:
    """The part of `count` that needs no passes through networks."""
    return _sizes(_key(recipe), precision, resolution, small)


def _key(recipe: Recipe) -> str:
    """The settings that costs of one picture depend on, as JSON."""
    average = None if recipe.train.average_images is None else 1
    unused = {"device", "precision", "compile", "sharding", "vae", "teacher_config"}
    unused |= {"lora_rank", "lora_alpha", "weights"} if recipe.model.form == "full" else {"lora_alpha"}
    plain = {"seed": 0, "batch": 1, "micro_batch": 1, "average_images": average}
    chosen = Recipe.model_validate(
        {
            "family": recipe.family,
            "model": recipe.model.model_dump(exclude=unused),
            "grid": {"steps": recipe.grid.steps},
            "gan": recipe.gan.model_dump(exclude={"weight", "fake_weight"}),
            "dm": {"guidance": 1.0 if recipe.dm.guidance == 1.0 else 8.0},
            "train": plain,
        }
    )
    return json.dumps(chosen.model_dump(mode="json"))


@dataclass(frozen=True)
class _Parts:
    family: Any
    networks: Networks
    heads: Any

    @property
    def modules(self) -> list[nn.Module]:
        n = self.networks
        views = [n.student, n.fake, n.teacher, *([] if n.average is None else [n.average])]
        nets: list[nn.Module] = [self.family.base.net, self.family.pipeline.vae, *(view.base.net for view in views)]
        return [*nets, *([] if self.heads is None else [self.heads])]


def _parts(recipe: Recipe, precision: str, resolution: int, small: bool) -> _Parts:
    make = family_named(recipe.family).module.random_family
    family: Any = make(resolution, precision, recipe.model.storage(precision), META, small)
    with META:
        return _Parts(family, new_networks(recipe, family, None), _heads(recipe, family, small))


def _heads(recipe: Recipe, family: Family, small: bool) -> nn.Module | None:
    kind, sam = recipe.gan.kind, recipe.gan.sam
    if kind == "none":
        return None
    if kind == "latent":
        return LatentDiscriminator(family.tap_widths)
    if small or sam == "embedded":
        encoder = new_sam(json.loads((asset("shapes-sam") / "config.json").read_text())).image_encoder
    elif sam in sam_model_registry:
        encoder = sam_model_registry[sam]().image_encoder
    else:
        encoder = load_sam_encoder(sam).to(META)
    return PixelDiscriminator(encoder, precision=family.precision)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in {id(each): each for each in tensors}.values())


@lru_cache(maxsize=64)
def _sizes(key: str, precision: str, resolution: int, small: bool) -> Sizes:
    return _sizes_of(_parts(Recipe.model_validate_json(key), precision, resolution, small))


def _sizes_of(parts: _Parts) -> Sizes:
    student, average = parts.networks.student, parts.networks.average
    heads = 0 if parts.heads is None else sum(p.numel() for p in parameters_of(parts.heads))
    own = sum(p.numel() for p in student.parameters)
    text = family_named(parts.family.name).module.random_text(parts.family, 1)
    denoiser = parts.networks.teacher.base.net.named_parameters()
    return Sizes(
        parameters=sum(p.numel() for name, p in denoiser if ".lora_" not in name),
        trainable=2 * own + heads,
        weights=_bytes(t for net in parts.modules for t in (*net.parameters(), *net.buffers())),
        averages=0 if average is None else _bytes(average.parameters),
        student=own,
        heads=heads,
        cached=2 * (math.prod(parts.family.latent_shape) + sum(each.numel() for each in text.values())),
    )  # fmt: skip


@lru_cache(maxsize=64)
def _count(key: str, precision: str, resolution: int, small: bool) -> Counts:
    recipe = Recipe.model_validate_json(key)
    parts = _parts(recipe, precision, resolution, small)
    family, nets, heads = parts.family, parts.networks, parts.heads
    objective, meter = Objective(recipe, family, family.grid(recipe.grid.steps)), Meter(parts.modules, precision)
    draws, metrics = Draws(0, 0, range(1), META), StepMetrics()
    batch = RandomData(family, 1).batch(range(1))
    cond = objective.conditioning(batch)
    latents = torch.empty(1, *family.latent_shape, device=META)
    last = len(objective.grid) - 1
    state: Any = SimpleNamespace(discriminator=SimpleNamespace(net=heads), fake=SimpleNamespace(net=nets.fake))
    nothing = Cost(0, 0, 0, 0, 0)
    decoder = gan = views = discriminator = nothing

    def decode_with_gradient() -> None:
        picture = objective.view(leaf, draws)
        torch.autograd.grad(picture, leaf, torch.empty_like(picture))

    def judge(updates_student: bool) -> None:
        adversarial(recipe, objective, state, output, leaf, last, updates_student, metrics, 1)

    def train_discriminator() -> None:
        discriminator_loss(recipe, objective, heads, nets.fake, output, last, metrics, 1).backward()

    with meter.running():
        x, forward = meter.measure(lambda: objective.student_x0(nets.student, latents, 0, cond))
        output = StudentOutput(draws, cond, batch.pixels, latents, x.detach())
        leaf = output.x.clone().requires_grad_()
        _, scores = meter.measure(lambda: objective.dm_loss(leaf, nets.teacher, nets.fake, cond, draws))
        _, backward = meter.measure(partial(x.backward, torch.empty_like(x)))
        del x
        if heads is not None:
            if recipe.gan.kind == "pixel":
                _, decoder = meter.measure(decode_with_gradient)
            _, gan = meter.measure(partial(judge, True))
            _, views = meter.measure(partial(judge, False))
            _, discriminator = meter.measure(train_discriminator)
        with torch.no_grad():
            _, preview = meter.measure(lambda: family.decode(latents))
    kept = [batch.pixels, latents, output.x, *cond.values(), *(output.features or ())]
    return Counts(
        _sizes_of(parts), forward, backward, scores, gan, decoder, views, discriminator, _bytes(kept), preview
    )  # fmt: skip
