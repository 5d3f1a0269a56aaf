"""The validated options of a preparation; an invalid option raises a one-line error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashdmd_cli.data.chunks import MAX_SHARD_SIZE, Settings
from flashdmd_cli.data.filters import Filter
from flashdmd_cli.data.prompts import PICKLE_SUFFIXES
from flashdmd_cli.data.sources import FORMATS, Reading, detect
from flashdmd_cli.data.sources.coco import SUITES
from flashdmd_cli.families.dimensions import Dimensions
from flashdmd_cli.families.registry import FAMILIES, family_at
from flashdmd_cli.runs.errors import InputError, UsageError
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.workflows.inputs.teachers import Parts, find_source

ENCODINGS = ("png", "jpg", "webp")
DUPLICATES = ("exact", "near", "keep")
CAPTIONS = ("first", "random")
CACHES = ("latents", "text")
TAKERS = {
    "image_column": ("--image-column", ("parquet",)),
    "caption_column": ("--caption-column", ("folder", "imagefolder", "webdataset", "parquet", "prompts")),
    "names_are_captions": ("--captions-from-names", ("folder",)),
    "suite": ("--suite", ("coco",)),
}
"""Field of `Reading` -> (option, kinds of sources that support it)."""
LARGEST_PNG = 256
"""Largest side in pixels for which PNG is the default; larger pictures are written as JPEG, a fifth of the size."""
SUITE_SIDE = 512
"""Default side of a suite's reference pictures in pixels, since COCO's have at most 640."""


@dataclass(frozen=True)
class Options:
    """The options of a preparation as given, not validated."""

    source: Path
    reading: dict[str, Any] = field(default_factory=dict)
    """Fields of `data.sources.Reading`."""
    filters: Sequence[str] = ()
    resolution: int | None = None
    encoding: str | None = None
    duplicates: str = "exact"
    teacher: str = "sdxl"
    cache: Sequence[str] = ()
    shard_size: int = 1000
    num: int | None = None
    parts: Parts = Parts()


@dataclass(frozen=True)
class Request:
    """The validated options. Calls with the same `identity` are the same preparation."""

    source: Path
    reading: Reading
    settings: Settings
    shard_size: int = 1000
    num: int | None = None
    cache: tuple[str, ...] = ()
    teacher: str = "sdxl"
    parts: Parts = Parts()

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines the shards, except the list of input files. Caches are not part, as they can be added."""
        reading = {key: value for key, value in vars(self.reading).items() if value is not None and value is not False}
        facts = {"num": self.num, "shard_size": self.shard_size}
        return facts | reading | self.settings.as_dict()


def make_request(given: Options, reporter: Reporter) -> Request:
    """Validate `given`; raises `UsageError` or `InputError` for the first invalid option.

    `reporter` receives the progress if a teacher has to be downloaded to know its resolution.
    """
    check(given)
    format_ = check_format(given)
    suite = given.reading.get("suite")
    side = given.resolution or (SUITE_SIDE if suite else resolution_of(given, reporter))
    settings = Settings(
        side=side,
        encoding=given.encoding or ("png" if side <= LARGEST_PNG else "jpg"),  # type: ignore[arg-type]
        filters=parse_filters(given.filters, side, suite),
        # The number of prompts of a suite is fixed, so duplicates are kept.
        duplicates="keep" if suite else given.duplicates,  # type: ignore[arg-type]
        keep_prompts=bool(suite) or format_ == "prompts",
    )
    check_cache(given, side, reporter)
    reading, cache = Reading(**given.reading), tuple(given.cache)
    return Request(given.source, reading, settings, given.shard_size, given.num, cache, given.teacher, given.parts)


def check(given: Options) -> None:
    """Raise for unknown or out-of-range values, and for a missing source."""
    for flag, value, known in (
        ("--format", given.reading.get("format"), FORMATS),
        ("--suite", given.reading.get("suite"), tuple(SUITES)),
        ("--caption", given.reading.get("caption"), CAPTIONS),
        ("--encode", given.encoding, ENCODINGS),
        ("--duplicates", given.duplicates, DUPLICATES),
        *(("--cache", kind, CACHES) for kind in given.cache),
    ):
        if value is not None and value not in known:
            raise UsageError(f"{flag} {value}: unknown", hint=f"known: {', '.join(known)}")
    for flag, number, most in (
        ("--num", given.num, 10**12),
        ("--shard-size", given.shard_size, MAX_SHARD_SIZE),
        ("--resolution", given.resolution, 16384),
    ):
        if number is not None and not 1 <= number <= most:
            raise UsageError(f"{flag} {number}: must be from 1 to {most}")
    if not given.source.exists() and given.source.suffix not in PICKLE_SUFFIXES:
        raise InputError(f"SOURCE {given.source}: no such file or folder", hint="a path, or `shapes`")


def check_cache(given: Options, side: int, reporter: Reporter) -> None:
    """Raise if a cache is requested and the teacher is missing, or, for latents, has another resolution."""
    if given.cache and (own := dimensions_of(given, reporter).resolution) != side and "latents" in given.cache:
        raise UsageError(
            f"--resolution {side}: {given.teacher} has pictures of {own} pixels, so such latents are useless for it",
            hint="leave --resolution out, or cache only text",
        )


def resolution_of(given: Options, reporter: Reporter) -> int:
    """Side of the teacher's pictures in pixels; for a family's original model known without its files."""
    for facts in FAMILIES.values():
        if given.teacher in (facts.name, facts.hub_id):
            return facts.resolution
    return dimensions_of(given, reporter).resolution


def dimensions_of(asked: Options | Request, reporter: Reporter) -> Dimensions:
    """Dimensions of the requested teacher; InputError if its files cannot be found or read."""
    source = find_source(asked.teacher, asked.parts, reporter)
    try:
        return family_at(source.folder).module.dimensions(source.folder)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"--teacher {asked.teacher}: its sizes cannot be read: {error}") from None


def parse_filters(texts: Sequence[str], side: int, suite: str | None) -> tuple[Filter, ...]:
    """The filters of the command line, with `min_side>=side` unless one is about `min_side`, to avoid enlarging."""
    filters = []
    for text in texts:
        try:
            filters.append(Filter.parse(text))
        except ValueError as error:
            raise UsageError(f"--filter {text}: {error}", hint="for example --filter 'aesthetic>=6.25'") from None
    if not suite and not any(each.column == "min_side" for each in filters):
        filters.append(Filter("min_side", ">=", float(side)))
    return tuple(filters)


def check_format(given: Options) -> str:
    """The kind of the source, given or detected; UsageError for an option that this kind does not support."""
    suite = given.reading.get("suite")
    format_ = given.reading.get("format") or ("coco" if suite else detect(given.source))
    for key, (flag, takers) in TAKERS.items():
        if given.reading.get(key) and format_ not in takers:
            raise UsageError(
                f"{flag}: has no effect, since {given.source} is of the kind {format_}",
                hint=f"it is for {' and '.join(takers)}; --format sets the kind of SOURCE",
            )
    if suite and given.reading.get("caption") == "random":
        raise UsageError("--caption random: --suite determines the captions", hint="leave one of them out")
    return format_
