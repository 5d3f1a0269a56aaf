"""What is exported, and the interface of the formats."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from flashdmd_cli.families.facts import Facts, Labels
from flashdmd_cli.families.files import Source, read_json
from flashdmd_cli.families.parts import config_folder, stored_network
from flashdmd_cli.families.storage import DTYPES
from flashdmd_cli.families.stored import Stored, file_size, write_stored

LARGE = 1_000_000_000
"""Number of values in a denoiser above which it is compared in 16 bits, which takes half the memory."""
TOLERANCE = 1e-3
"""Largest difference of a pixel, on [0, 1], between an exact export in float32 and the student."""
ROUNDED = {"fp16": 0.02, "bf16": 0.02, "fp8": 0.1}
"""Number format -> largest mean difference of the pixels if weights are rounded to it, as a share of their range.

Far above the effect of rounding, and far below the difference of two unrelated pictures (0.2 to 0.3).
"""


@dataclass(frozen=True)
class Job:
    """A student and the files that it is exported from; nothing is loaded."""

    facts: Facts
    source: Source
    """The teacher's files, with the student's denoiser."""
    adapter: Path | None
    """LoRA file of the student, if adapters on the teacher were trained."""
    is_base_rounded: bool
    """Whether these adapters were trained on the teacher in 8 bits, so that on the teacher itself they approximate."""
    steps: int
    scheduler: str
    """Class of the student's scheduler in diffusers."""
    scheduler_config: Mapping[str, Any]
    title: str
    """Stem of the names of single files, such as `my-model-4step`."""
    teacher: str
    """The teacher's name."""
    license: str | None
    dtypes: tuple[str, ...]
    """Number formats of the weights, from `DTYPES`; empty: each format's own choice."""
    rank: int
    """Rank of a LoRA that approximates a student whose weights were all trained."""

    @property
    def student(self) -> Path:
        """The folder of the student's denoiser."""
        assert self.source.denoiser is not None
        return self.source.denoiser

    @property
    def denoiser(self) -> str:
        """Name of the denoiser in a pipeline: `unet`, `transformer`."""
        return self.facts.networks[0]

    @cached_property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks of the pipeline."""
        return self.facts.parts(self.source)[0]

    @cached_property
    def settings(self) -> tuple[str, ...]:
        """Names of the parts of the pipeline without weights: tokenizers and scheduler."""
        return self.facts.parts(self.source)[1]

    def tensors(self, part: str) -> dict[str, Stored]:
        """The tensors of one network of the student's pipeline."""
        return stored_network(self.facts, self.source, part)

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of one network, without paths of the machine that it was written on."""
        config = read_json(config_folder(self.facts, self.source, part) / "config.json")
        config.pop("_name_or_path", None)
        return config

    @cached_property
    def student_dtype(self) -> str:
        """Number format in which the student is stored."""
        dtype = next(value.dtype for value in self.tensors(self.denoiser).values() if value.dtype.is_floating_point)
        return next((name for name, each in DTYPES.items() if each == dtype), "fp32")

    @cached_property
    def check_dtype(self) -> str:
        """Number format of the denoiser's weights in the comparison of export and student.

        The student's own, but 16 bits for large ones: both sides are rounded in the same way, and each layer computes
        in float32 nevertheless.
        """
        num_values = sum(math.prod(value.shape) for value in self.tensors(self.denoiser).values())
        return "fp16" if self.student_dtype == "fp32" and num_values > LARGE else self.student_dtype

    @property
    def labels(self) -> Labels:
        """Identifiers of the model in the metadata of files."""
        return self.facts.module.labels(self.config(self.denoiser), self.scheduler_config)

    def dtype(self, default: str) -> str:
        """Number format of an export in one file."""
        return self.dtypes[0] if self.dtypes else default


@dataclass(frozen=True)
class File:
    """A file that an export consists of."""

    path: str
    """Relative to the folder of the export."""
    size: int | None
    """In bytes; None for a small text that is known only after writing."""
    write: Callable[[Path], None]
    """Writes it to a path, whose folder exists."""
    is_estimate: bool = False
    """Whether `size` is that of the weights in it alone."""
    readers: str = ""
    """The programs that read it, for people who have to choose among several files of one model."""


class Format(Protocol):
    """The functions of a format's module."""

    def files(self, job: Job) -> list[File]:
        """What the export will consist of. Raises Unfit if the student cannot be exported to this format."""

    def load(self, job: Job, out: Path) -> Any:
        """The exported student as a stock diffusers pipeline, loaded from `out` by the loader that users call."""

    def dtype(self, job: Job) -> str:
        """Number format of the weights."""

    def is_exact(self, job: Job) -> bool:
        """Whether the export draws the same pictures as the student except for the rounding of its weights."""


def weights_file(
    path: str, tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None, readers: str = ""
) -> File:
    """A safetensors file, written tensor by tensor."""
    metadata = metadata or {}
    return File(path, file_size(tensors, metadata), lambda at: write_stored(at, tensors, metadata), readers=readers)


def text_file(path: str, text: str) -> File:
    """A file with this text."""

    def write(at: Path) -> None:
        at.write_text(text, encoding="utf-8")

    return File(path, len(text.encode()), write)


def copy_of(path: Path, to: str | None = None) -> File:
    """A copy of a file, under its own name or as `to`."""

    def write(at: Path) -> None:
        shutil.copyfile(path, at)

    return File(to or path.name, path.stat().st_size, write)
