"""The interface of everything that draws pictures for prompts: networks of this package, and presets of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdmd_cli.runs.reporter import Reporter, SilentReporter

if TYPE_CHECKING:
    from torch import Tensor

    from flashdmd_cli.evaluation.generate import NoiseKey
    from flashdmd_cli.runs.device import Place
    from flashdmd_cli.runs.teacher import TeacherRecord


class Drawer(ABC):
    """A loaded model with all settings that decide which pictures it draws."""

    name: str
    """In messages, and as the name of the folder of its pictures."""
    steps: int
    """Sampling steps per picture."""
    folder: Path
    """Checkpoint or pipeline folder."""
    record: TeacherRecord
    """Content hashes of the weights that were loaded, or of the teacher of the student that was loaded."""

    @property
    @abstractmethod
    def family_name(self) -> str:
        """Name of the model family, for manifests."""

    @property
    @abstractmethod
    def place(self) -> Place:
        """Device and number format."""

    @property
    @abstractmethod
    def tokenizers(self) -> Sequence[Any]:
        """The tokenizers of the text encoders, from transformers."""

    @property
    @abstractmethod
    def draws_shapes(self) -> bool:
        """Whether its pictures are of the embedded world."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Pictures that go through the network at once, unless `draw_from` is given another number.

        On a CPU one: the last bits of a matrix product depend on its shape, so that a picture is the same whatever is
        drawn beside it only if its shape never changes, and larger batches are hardly faster there.
        """

    @abstractmethod
    def with_steps(self, steps: int) -> Drawer:
        """The same loaded model with another number of sampling steps; UsageError if it does not support them."""

    @abstractmethod
    def compile(self) -> None:
        """Compile the denoiser with `torch.compile`: the first picture takes minutes, others are faster."""

    @abstractmethod
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
        """Pictures `first`, `first` + 1, ... of a longer list, (B, 3, H, W) on [-1, 1].

        They start from the same noise as if all pictures of the list were drawn at once. `progress(done, B)` is called
        after each batch, `step(num)` after a step of `num` pictures. `keys` name the noise of each picture instead of
        `seed` and `first`; `batch` pictures go through the network at once.
        """

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Everything that decides the pictures: drawers with the same identity draw the same from the same seed.

        Identifies files by their content, not by their names.
        """

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """How the pictures were drawn, for the result's document and manifest."""

    def draw(self, captions: Sequence[str], seed: int, reporter: Reporter | None = None) -> Tensor:
        """A picture for every caption, (N, 3, H, W) on [-1, 1]; the noise of picture i depends on seed and i alone."""
        reporter = reporter or SilentReporter()
        reporter.progress(0, len(captions))
        return self.draw_from(seed, captions, 0, reporter.progress)

    def step_counter(self, num_pictures: int, reporter: Reporter) -> Callable[[int], None]:
        """A callback for `draw_from` that reports progress in steps, for few pictures that each take long."""
        done, total = 0, num_pictures * self.steps
        reporter.progress(0, total)

        def count(num: int) -> None:
            nonlocal done
            done = min(done + num, total)  # a batch that did not fit into memory is counted twice
            reporter.progress(done, total)

        return count
