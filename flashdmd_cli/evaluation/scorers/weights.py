"""Where the weights of scorers come from: a local folder, the cache of the hub, or the hub."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.hub import Wanted, cached, fetch, files_below
from flashdmd_cli.runs.reporter import Reporter


class WeightsMissing(InputError):
    """Weights of a metric that are neither here nor to be had."""


@dataclass(frozen=True)
class Weights:
    """Files of one repository of the hub that a scorer is loaded from."""

    metric: str
    """Name of the metric, the start of error messages."""
    hub_id: str
    """`owner/name`."""
    files: tuple[str, ...]
    """The files that are needed, the one with the weights first."""
    size: str
    """Of the download, for messages."""
    optional: tuple[str, ...] = ()
    """Files that are taken if they are there."""

    @property
    def local(self) -> str:
        """Layout below `--weights-dir`: `owner/name/file`."""
        return f"{self.hub_id}/{self.files[0]}"


def locate(weights: Weights, weights_dir: Path | None, reporter: Reporter, download: bool = True) -> Path:
    """The folder with the files of `weights`.

    `weights_dir` may hold them as `owner/name/FILE` or `name/FILE`, or flat where the file's name says what it is (a
    `.pt` file: `ImageReward.pt`). Else they come from the cache of the hub, or are downloaded. WeightsMissing, in one line with the id, file, size and that layout, otherwise.
    """
    for folder in _local_folders(weights, weights_dir):
        if all((folder / name).is_file() for name in weights.files):
            return folder
    hint = f"--weights-dir DIR takes a local copy as DIR/{weights.local}"

    def choose(names: Iterable[str]) -> tuple[list[str], list[str]]:
        present = set(names)
        wanted = [*weights.files, *(name for name in weights.optional if name in present)]
        return wanted, [name for name in weights.files if name not in present]

    if not download:
        folder = cached(weights.hub_id, None)
        if folder is not None and not choose(files_below(folder))[1]:
            return folder
        raise WeightsMissing(
            f"{weights.metric}: {weights.files[0]} of {weights.hub_id} ({weights.size}) is not on this machine", hint
        )
    wanted_files = Wanted(weights.metric, weights.hub_id, None, f"{weights.files[0]}, {weights.size}", hint=hint)
    try:
        return fetch(wanted_files, choose, reporter.say, reporter.draws_bars)
    except InputError as error:
        raise WeightsMissing(error.message, error.hint) from error


def _local_folders(weights: Weights, weights_dir: Path | None) -> list[Path]:
    if weights_dir is None:
        return []
    flat = [weights_dir] if weights.files[0].endswith(".pt") else []
    return [weights_dir / weights.hub_id, weights_dir / weights.hub_id.partition("/")[2], *flat]
