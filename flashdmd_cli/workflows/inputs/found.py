"""Models to draw with that are found and checked, but not loaded: torch is imported when they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from flashdmd_cli.evaluation.names import Sampler
from flashdmd_cli.families.files import Source
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.reporter import Reporter, SilentReporter
from flashdmd_cli.workflows.inputs.drawer import Drawer
from flashdmd_cli.workflows.inputs.families import drawing_place, load_family
from flashdmd_cli.workflows.inputs.family_drawer import FamilyDrawer, check_size
from flashdmd_cli.workflows.inputs.teachers import teacher_record

if TYPE_CHECKING:
    from flashdmd_cli.evaluation.baselines.preset import Preset
    from flashdmd_cli.families.family import Family
    from flashdmd_cli.runs.teacher import TeacherRecord


@dataclass(frozen=True)
class Found:
    """A student or teacher of this package's model families: its files are there and its settings fit."""

    name: str
    teacher: str
    sampler: Sampler
    steps: int
    guidance: float
    folder: Path
    source: Source
    """The files of its family."""
    record: TeacherRecord | None = None
    """None: computed from `source` on loading. Never None for a student."""
    student: Path | None = None
    """Folder of the network that takes the place of the teacher's."""
    size: tuple[int, int] | None = None
    trained_steps: int | None = None

    @property
    def is_student(self) -> bool:
        return self.sampler == "few_step"

    def sized(self, size: tuple[int, int] | None) -> Found:
        """The same for pictures of this height and width; UsageError if its networks do not support them."""
        if size is None:
            return self
        check_size(self.source.folder, size)
        return replace(self, size=size)

    def load(
        self, device: str | None = None, reporter: Reporter | None = None, beside: Drawer | None = None
    ) -> FamilyDrawer:
        """Load its networks to `device`, or use those of the family that `beside` was loaded with if the files are the
        same."""
        if isinstance(beside, FamilyDrawer) and beside.source == self.source:
            return self.load_with(beside.family)
        return self.load_with(load_family(self.source, drawing_place(device)))

    def load_with(self, family: Family) -> FamilyDrawer:
        """The same with `family`, which was loaded from `source`; only the network of a student is still loaded."""
        net = family.teacher
        if self.student is not None:
            try:
                net = family.load_student(self.student).base.to(family.device).view()
            except (OSError, ValueError) as error:
                raise InputError(
                    f"--from {self.folder}: student/ cannot be read: {str(error).splitlines()[0]}"
                ) from error
        return FamilyDrawer(
            family=family,
            net=net,
            name=self.name,
            teacher=self.teacher,
            sampler=self.sampler,
            steps=self.steps,
            guidance=self.guidance,
            folder=self.folder,
            record=self.record or teacher_record(self.teacher, self.source),
            source=self.source,
            size=self.size,
            trained_steps=self.trained_steps,
        )


@dataclass(frozen=True)
class FoundPreset:
    """A published model whose preset was read. Its files are found, or downloaded, on loading."""

    model: str
    """Name or path of the preset as in `--model`."""
    preset: Preset

    is_student: ClassVar[bool] = False
    """It was not distilled by this package."""
    size: ClassVar[None] = None
    """The preset decides it."""

    @property
    def name(self) -> str:
        return self.preset.name

    def load(self, device: str | None = None, reporter: Reporter | None = None, beside: Drawer | None = None) -> Drawer:
        """Load its networks to `device`; it uses none of those of `beside`."""
        from flashdmd_cli.workflows.inputs.presets import load_preset

        return load_preset(self.model, self.preset, device, reporter or SilentReporter())
