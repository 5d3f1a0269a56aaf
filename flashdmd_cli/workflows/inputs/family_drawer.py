"""A student or teacher of this package's model families, loaded, with its sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.evaluation.names import Sampler
from flashdmd_cli.families.files import Source, read_json
from flashdmd_cli.families.registry import family_at
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.kinds import is_shapes
from flashdmd_cli.workflows.inputs.teachers import teacher_record

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.generate import NoiseKey
    from flashdmd_cli.families.base import View
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.device import Place
    from flashdmd_cli.runs.teacher import TeacherRecord

TEACHER_STEPS = 30
SIZE_UNIT = 8
"""Height and width of latents are multiples of this, which suits the strides and patches of all families."""


@dataclass(frozen=True)
class FamilyDrawer(Drawer):
    """A student or teacher of this package's model families, with its sampler."""

    name: str
    family: Family
    net: View
    teacher: str
    sampler: Sampler
    steps: int
    guidance: float
    folder: Path
    """Checkpoint or pipeline folder."""
    record: TeacherRecord
    source: Source
    """The files that the family was loaded from."""
    size: tuple[int, int] | None = None
    """Height and width of the pictures in pixels; None for the size that the teacher was trained for."""
    trained_steps: int | None = None
    """Number of steps that a student was trained for; None for a teacher, and for a student whose files do not say."""

    @property
    def family_name(self) -> str:
        return self.family.name

    @property
    def tokenizers(self) -> Sequence[Any]:
        return self.family.tokenizers

    @property
    def draws_shapes(self) -> bool:
        return is_shapes(self.family.source)

    @property
    def is_student(self) -> bool:
        """Whether it was distilled, or is the teacher's denoiser otherwise."""
        return self.sampler == "few_step"

    @property
    def place(self) -> Place:
        from flashdmd_cli.runs.device import Place

        return Place(self.family.device.type, self.family.precision)

    @property
    def batch(self) -> int:
        if self.place.device == "cpu":
            return 1
        return 32 if self.family.latent_shape[-1] <= 64 else 4

    def with_steps(self, steps: int) -> FamilyDrawer:
        check_steps(self.sampler, steps)
        return replace(self, steps=steps)

    def compile(self) -> None:
        self.net.base.compiled()

    def draw_from(
        self,
        seed: int,
        captions: Sequence[str],
        first: int,
        progress: Callable[[int, int], None] | None = None,
        step: Callable[[int], None] | None = None,
        keys: Sequence[NoiseKey] | None = None,
        batch: int | None = None,
    ) -> Tensor:
        from flashdmd_cli.evaluation.generate import generate

        family, way = self.family, (self.sampler, self.steps, self.guidance)
        return generate(
            family, self.net, captions, seed, *way,
            first_index=first, keys=keys, size=self.size, batch=batch or self.batch, progress=progress, step=step,
        )  # fmt: skip

    def identity(self) -> dict[str, object]:
        """Includes the hashes of the files that the family was loaded from, and of a student's manifest."""
        from flashdmd_cli import __version__
        from flashdmd_cli.runs.files import sha256_file
        from flashdmd_cli.runs.manifest import MANIFEST

        manifest = self.folder / MANIFEST
        return {
            "flashdmd": __version__,
            "loaded": teacher_record(self.teacher, self.source).hash,
            "student": sha256_file(manifest) if manifest.is_file() else None,
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance": self.guidance,
            "device": self.place.device,
            "precision": self.place.precision,
            **({} if self.size is None else {"size": self.size}),
        }

    def facts(self) -> dict[str, object]:
        return {
            "from": str(self.folder),
            "teacher": self.teacher,
            "sampler": self.sampler,
            "steps": self.steps,
            "nfe": self.steps * (1 if self.guidance == 1 else 2),
            "guidance": self.guidance,
            **({} if self.size is None else {"size": list(self.size)}),
        }


def check_steps(sampler: Sampler, steps: int) -> None:
    """Raise UsageError for a number of steps that a sampler does not support."""
    from flashdmd_cli.core.grid import VP_STEPS

    if sampler == "ddim":
        if not 1 <= steps <= 1000:
            raise UsageError(f"--steps {steps}: must be from 1 to 1000", hint=f"try --steps {TEACHER_STEPS}")
    elif steps not in VP_STEPS:
        possible = ", ".join(map(str, VP_STEPS))
        raise UsageError(f"--steps {steps}: must be one of {possible}", hint=f"the sampler {sampler} has no others")


def check_size(folder: Path, size: tuple[int, int]) -> None:
    """Raise UsageError, with the nearest size, for a height and width that the networks of a pipeline do not support.

    Reads only the configurations in `folder`.
    """
    facts, named = family_at(folder), f"--size {size[1]}x{size[0]}"
    try:
        sizes, config = facts.module.dimensions(folder), read_json(folder / facts.networks[0] / "config.json")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{named}: the sizes of {folder} cannot be read: {error}") from None
    pixels = sizes.resolution // sizes.latents[-1]
    unit = SIZE_UNIT * pixels
    most = config.get("pos_embed_max_size")  # of transformers with an embedding for each position
    limit = None if most is None else most * config["patch_size"] * pixels
    high, wide = (min(max(round(side / unit), 1) * unit, limit or math.inf) for side in size)
    nearest = f"the nearest is {wide}x{high}"
    if min(size) < unit or any(side % unit for side in size):
        raise UsageError(f"{named}: both must be multiples of {unit}", hint=nearest)
    if limit is not None and max(size) > limit:
        raise UsageError(f"{named}: this model draws at most {limit} pixels a side", hint=nearest)
