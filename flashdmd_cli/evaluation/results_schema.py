"""What readers of `results.json` and `samples.jsonl` rely on; other keys are allowed. The files may be anybody's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Score = Annotated[float, Field(ge=-1e9, le=1e9)]
"""A metric of a single picture; none has larger values."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Range(_Row):
    """A value with its 95% interval; null for what is not finite."""

    value: FiniteFloat | None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None


class MetricResult(Range):
    """One metric."""

    n: int
    """Of how many pictures the value is made."""
    direction: Literal["higher", "lower", "one", "none"]
    parts: dict[str, Range] = {}


class SuiteResult(_Row):
    """What was measured on."""

    name: str
    version: int | str
    sha256: str
    prompts: int
    pictures: int


class NamedFiles(_Row):
    """Pictures that have something in common, of which the first are named."""

    num: int
    files: list[str]


class PictureResult(_Row):
    """Pictures that were left out, or measured and noted, by the reason."""

    measured: int | None = None
    left_out: dict[str, NamedFiles] = {}
    notes: dict[str, NamedFiles] = {}


class Seconds(_Row):
    """How long the two phases took."""

    generate: FiniteFloat
    score: FiniteFloat


class ResultDocument(_Row):
    """`results.json`."""

    format: int = Field(0, alias="schema")
    """Version of the format."""
    name: str | None = None
    suite: SuiteResult
    metrics: dict[str, MetricResult]
    warnings: list[str] | None = None
    skipped: dict[str, str] | None = None
    pictures: PictureResult | None = None
    seconds: Seconds | None = None
    steps: int | None = None
    nfe: int | None = None


class SampleResult(_Row):
    """A line of `samples.jsonl`."""

    id: str | int
    seed: int
    scores: dict[str, Score | None]
    file: str | None = None
    prompt: str | None = None
    left_out: Any = None
