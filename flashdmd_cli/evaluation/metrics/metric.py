"""The protocol of a metric, the base classes that share their arithmetic, and the description of a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor

from flashdmd_cli.evaluation.metrics.instruments import Instruments
from flashdmd_cli.evaluation.metrics.intervals import Interval, exactly, mean, share
from flashdmd_cli.runs.errors import NumericalError
from flashdmd_cli.runs.tables import Config

Direction = Literal["higher", "lower", "one", "none"]
"""Which values of a metric are better: higher, lower, those closest to one (a ratio), or none (a description)."""
Backend = Literal["inprocess", "upstream"]
"""Who computes values: this package, or the packages of the authors where there are some."""
NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Row:
    """One picture of a suite, drawn or real."""

    index: int
    """Position in the suite, from 0; determines the name of its file."""
    prompt: str
    group: int | None = None
    """Number of the group of pictures with the same prompt, for diversity; None outside such groups."""
    counts: bool = True
    """Whether metrics of single pictures include it. Pictures of a group are usually drawn in addition to the others;
    including them would give their prompts too much weight."""
    prompt_id: str = ""
    """Name of the prompt in its suite; the same in every evaluation of the suite."""
    sample: int = 0
    """Which of several pictures of this prompt, from 0: the seed of the picture is that of the evaluation plus this."""


class Metric(ABC):
    """A metric, computed batch by batch. A subclass defines the class variables, `measure` and `result`.

    A metric has no state: `measure` reduces each picture to a few numbers, which `evaluation.measuring` collects, and
    `result` computes the metric from the numbers of all pictures. So the result does not depend on the batch size.
    """

    name: ClassVar[str]
    """Key in results, in suites and in `--fail-below NAME=NUMBER`."""
    heading: ClassVar[str]
    """Heading of its column, without the arrow."""
    direction: ClassVar[Direction]
    version: ClassVar[int] = 1
    """Increased with every change after which the same pictures give another value."""
    unit: ClassVar[str]
    """What is measured: `share of pictures`, `cosine`, `squared distance of Inception features`."""
    scale: ClassVar[str] = ""
    """Scale on which the value is published, where there are several: `cosine`, `cosine x 100`."""
    compares: ClassVar[bool] = False
    """Whether it needs the suite's real pictures."""
    of_groups: ClassVar[bool] = False
    """Whether it compares pictures of one prompt with each other: a prompt of which one is missing is left out."""
    least: int = 1
    """With fewer pictures, drawn or (where it `compares`) real, there is no value, and the metric is skipped."""
    min_pictures: ClassVar[int] = 2
    """With fewer pictures the value is computed, and a warning says that it is unreliable."""
    in_table: ClassVar[bool] = True
    """Whether it has a column in a terminal's table; in the document it always is."""
    digits: ClassVar[int] = 3
    """Decimals in a table."""
    backend: ClassVar[Backend] = "inprocess"
    """What computes the value: this package, or that of the metric's authors."""
    Options: ClassVar[type[Config]] = Config
    """What a suite may set for this metric; the defaults are those of the published tables."""

    def __init__(self, instruments: Instruments, options: Mapping[str, Any] = NO_OPTIONS) -> None:
        """Check `options` (pydantic's ValidationError) and find the networks (`WeightsMissing`), before any drawing."""
        self.options: Any = self.Options.model_validate(dict(options))
        self.prepare(instruments)

    def prepare(self, instruments: Instruments) -> None:  # noqa: B027
        """Take the networks that it needs from `instruments`; a metric without networks does nothing."""

    def takes(self, row: Row) -> bool:
        """Whether to include this picture; by default `row.counts`."""
        return row.counts

    @abstractmethod
    def measure(self, pictures: Tensor, rows: Sequence[Row]) -> Tensor:
        """Numbers of `B` pictures (B, 3, H, W) uint8 on the CPU: a tensor (B, ...) on the CPU, each row a function of
        its own picture and prompt alone. All pictures of one call have one size; sizes may differ between calls."""

    def condense(self, numbers: Tensor) -> Tensor:
        """Fewer numbers in place of those of `measure`, a row for each picture still, from all pictures of some groups
        (N, ...). `result` gets these rows. By default the same: only a metric of groups may need whole pictures."""
        return numbers

    @abstractmethod
    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        """The value with its interval, from the rows of `condense` for all `N` drawn pictures, (N, ...), in order.

        `prompts` are their prompt ids: pictures of one prompt are not independent, so that intervals take a prompt as
        one observation. Empty: each picture has a prompt of its own. They change no value but `unbiased.*`.
        `real` holds the same for the real pictures, (M, ...), if the metric `compares`, else nothing. The key `name` is
        the metric itself; keys with a dot (`attributes.colour`) are breakdowns of it.
        """

    def scores(self, numbers: Tensor) -> Tensor | None:
        """One value for each picture, (N,) float64, from the rows of `measure`, where the metric is a mean over single
        pictures; None for a metric of a set of pictures."""
        return None

    def provenance(self) -> dict[str, Any]:
        """What decides the value besides the pictures: weights (hub id, file, sha256), preprocessing, versions of
        packages, options. Part of every result."""
        options = self.options.model_dump(mode="json")
        return {"options": options} if options else {}


class PictureMean(Metric):
    """A mean over single pictures: `measure` gives one number of each, and `result` their mean with its interval.

    Values that are not finite are left out of the mean, and `not_finite.NAME` says how many.
    """

    def scores(self, numbers: Tensor) -> Tensor:
        """`numbers` themselves; a subclass that measures more than one number computes the score from them."""
        return numbers.double()

    def result(self, drawn: Tensor, real: Tensor, prompts: Sequence[str] = ()) -> Mapping[str, Interval]:
        scores = self.scores(drawn)
        finite = scores.isfinite()
        if not finite.any():
            raise NumericalError(f"{self.name}: none of {len(scores)} pictures has a finite value")
        left_out = int((~finite).sum())
        kept = [prompt for prompt, fine in zip(prompts, finite.tolist(), strict=True) if fine] if prompts else ()
        found = {self.name: self.interval(scores[finite], kept)}
        return found | {f"not_finite.{self.name}": exactly(left_out)} if left_out else found

    def interval(self, scores: Tensor, prompts: Sequence[str]) -> Interval:
        """The mean of finite `scores` (N,), with its interval."""
        return mean(scores, prompts)


class PictureShare(PictureMean):
    """The share of pictures for which `measure` is true, with Wilson's interval."""

    def interval(self, scores: Tensor, prompts: Sequence[str]) -> Interval:
        return share(scores, prompts)
