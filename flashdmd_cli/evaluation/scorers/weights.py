"""Where the weights of scorers come from: a local folder, the cache of the hub, or the hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from flashdmd_cli.runs.download import RemoteFile, fetch_file
from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.hub import Wanted, cached, fetch, files_below
from flashdmd_cli.runs.reporter import Reporter
from flashdmd_cli.runs.teacher import sha256_remembered


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
    `.pt` file: `ImageReward.pt`). Else they come from the cache of the hub, or are downloaded. Otherwise
    WeightsMissing, in one line with the id, file, size and that layout.
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
        snapshot = cached(weights.hub_id, None)
        if snapshot is not None and not choose(files_below(snapshot))[1]:
            return snapshot
        raise WeightsMissing(
            f"{weights.metric}: {weights.files[0]} of {weights.hub_id} ({weights.size}) is not on this machine", hint
        )
    wanted_files = Wanted(weights.metric, weights.hub_id, None, f"{weights.files[0]}, {weights.size}", hint=hint)
    try:
        return fetch(wanted_files, choose, reporter.say, reporter.draws_bars)
    except InputError as error:
        raise WeightsMissing(error.message, error.hint) from error


def locate_file(file: RemoteFile, weights_dir: Path | None, reporter: Reporter, download: bool = True) -> Path:
    """A file that is not on the hub: `weights_dir/NAME`, or in torch.hub's folder, or downloaded there."""
    if weights_dir is not None and (weights_dir / file.name).is_file():
        return weights_dir / file.name
    try:
        return fetch_file(file, reporter, download)
    except InputError as error:
        raise WeightsMissing(error.message, error.hint) from error


def remote(metric: str, url: str, size: str, source: str) -> RemoteFile:
    """The description of a file that is not on the hub."""
    return RemoteFile(
        metric, url, size, source, f"--weights-dir DIR takes a local copy as DIR/{url.rpartition('/')[2]}"
    )


def described(files: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Name and SHA-256 of weight files, each under what it is (`zai-org/ImageReward`), for results."""
    return {what: {"file": path.name, "sha256": sha256_remembered(path)} for what, path in files.items()}


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages, and of torch."""
    return {name: metadata.version(name) for name in ("torch", *packages)}


def _local_folders(weights: Weights, weights_dir: Path | None) -> list[Path]:
    if weights_dir is None:
        return []
    flat = [weights_dir] if weights.files[0].endswith(".pt") else []
    return [weights_dir / weights.hub_id, weights_dir / weights.hub_id.partition("/")[2], *flat]
