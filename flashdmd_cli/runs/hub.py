"""Download of weights from the Hugging Face hub, and look-up in the local cache.

Both use `huggingface_hub`, so its environment variables (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE,
...) apply. Complete files in the cache are used without network access, so a resumed run keeps its revision.

If a repository has float16 and float32 weights, the float16 ones are downloaded: for SDXL 6.9 GB instead of 13.9 GB.
They are converted to float32 on loading, so master weights and optimizer are in float32 anyway. Only the teacher's
weights are rounded, to 11 bits instead of 24; products in bfloat16 keep 8. Float32 weights that were downloaded with
`hf download` are preferred.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import reason, size

INDEX = "model_index.json"
"""The file of a pipeline that names its class and parts."""
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(\.(?P<a>fp16|bf16))?(-\d{5}-of-(?P<n>\d{5}))?(\.(?P<b>fp16|bf16))?\.safetensors"
)
_PRECISIONS = ("", "fp16", "bf16")
"""Precisions as named in file names, best first."""
_SMALL = (".json", ".txt")
TIMEOUT = 5.0
"""Timeout in seconds for metadata requests to the hub (not for downloads)."""
WORTH_A_BAR = 10_000_000
"""File size in bytes from which a progress bar is shown."""

Choose = Callable[[Iterable[str]], tuple[list[str], list[str]]]
"""File names of a repository -> (needed files, missing parts)."""


@dataclass(frozen=True)
class Wanted:
    """A requested repository, and texts for error messages about it."""

    option: str
    """Option and value, such as `--teacher sdxl`: the start of an error message."""
    hub_id: str
    """`owner/name`."""
    revision: str | None
    """Branch, tag or commit; None for the main branch."""
    size: str = ""
    """Size of the download, if it is known in advance."""
    hint: str = ""
    """Alternative to a download, for error messages."""
    or_path: bool = False
    """Whether the user may have meant a path; error messages then mention that it does not exist."""

    @property
    def weights(self) -> str:
        """For error messages: `the weights of owner/name@v1 (6.9 GB)`."""
        at = f"@{self.revision}" if self.revision else ""
        return f"the weights of {self.hub_id}{at}{f' ({self.size})' if self.size else ''}"

    def or_else(self, advice: str) -> str:
        """`advice`, followed by the alternative to a download."""
        return "; ".join(filter(None, (advice, self.hint)))


def parse_id(name: str) -> tuple[str, str | None] | None:
    """Split `owner/name[@revision]` into (`owner/name`, revision or None); None if `name` is not a valid hub id."""
    hub_id, _, revision = name.partition("@")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", hub_id, re.ASCII) or name.endswith("@"):
        return None
    return hub_id, revision or None


def pipeline_files(
    names: Iterable[str], networks: Sequence[str], settings: Sequence[str], half_first: bool = False
) -> tuple[list[str], list[str]]:
    """The files among `names` that are needed to load a pipeline, and its missing or incomplete parts.

    `networks` are its folders with weights, `settings` those without.

    Weights are safetensors, in one file or with all shards; float32 is preferred (`half_first`: float16). Pickles and
    files of other frameworks are ignored.
    """
    present = set(names)
    chosen = [INDEX] if INDEX in present else []
    lacking = [] if chosen else [INDEX]
    for part in (*networks, *settings):
        inside = {name.removeprefix(f"{part}/") for name in present if name.startswith(f"{part}/")}
        small = sorted(name for name in inside if name.endswith(_SMALL) and ".index." not in name and "/" not in name)
        weights = network_weights(inside, half_first) if part in networks else []
        if not small or (part in networks and not (weights and "config.json" in small)):
            lacking.append(f"{part}/")
        chosen += [f"{part}/{name}" for name in (*small, *weights)]
    return chosen, lacking


def network_weights(names: set[str], half_first: bool) -> list[str]:
    """One complete set of weight files of a network, with its index if it is sharded; empty if none is complete."""
    sets: dict[tuple[str, int], set[str]] = {}
    for name in names:
        if match := _WEIGHTS.fullmatch(name):
            sets.setdefault((match["a"] or match["b"] or "", int(match["n"] or 1)), set()).add(name)
    indices = {key: {n for n in names if n.endswith(_index_ending(key[0]))} if key[1] > 1 else set() for key in sets}
    whole = [key for key, files in sets.items() if len(files) == key[1] and (key[1] == 1 or indices[key])]
    if not whole:
        return []
    order = ("fp16", "", "bf16") if half_first else _PRECISIONS
    precision, shards = min(whole, key=lambda key: (order.index(key[0]), key[1]))
    return sorted(sets[precision, shards] | indices[precision, shards])


def _index_ending(precision: str) -> str:
    return f".safetensors.index.{precision}.json" if precision else ".safetensors.index.json"


def files_below(folder: Path) -> list[str]:
    """Relative names of the files in a folder, without broken links."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def cache_folder() -> Path | None:
    """The cache folder of `huggingface_hub`; None if there is no home directory."""
    from huggingface_hub import constants

    cache = constants.HF_HUB_CACHE
    return None if cache.startswith("~") else Path(cache)


def cached(hub_id: str, revision: str | None) -> Path | None:
    """The cached snapshot of a revision (default: the last known main branch), complete or not; or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if cache_folder() is None:
        return None
    try:
        # Without any file pattern, this only looks up the folder.
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True, allow_patterns=[]))
    except LocalEntryNotFoundError:
        return None


def fetch(wanted: Wanted, choose: Choose, say: Callable[[str], None], bars: bool) -> Path:
    """A snapshot with all files that `choose` selects, downloaded if needed; InputError if that is not possible.

    Interrupted transfers are resumed. After a killed process, finished files are kept and others start again. `bars`
    shows progress on stderr.
    """
    folder = cached(wanted.hub_id, wanted.revision)
    if folder is not None and not choose(files_below(folder))[1]:
        return folder
    if cache_folder() is None:
        raise InputError(
            f"{wanted.option}: {wanted.weights} are not here, and without a home directory there is no place for them",
            hint=wanted.or_else("HF_HOME=DIR names one"),
        )
    from huggingface_hub.errors import HTTPError

    try:
        return _fetch(wanted, choose, say, bars)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _input_error(wanted, error) from error


def _fetch(wanted: Wanted, choose: Choose, say: Callable[[str], None], bars: bool) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, logging

    logging.set_verbosity_error()  # messages of this package are enough
    revision = wanted.revision or constants.DEFAULT_REVISION
    info = HfApi().model_info(wanted.hub_id, revision=revision, files_metadata=True, timeout=TIMEOUT)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    files, lacking = choose(sizes)
    if lacking:
        raise InputError(
            f"{wanted.option}: {wanted.hub_id} has no {', '.join(lacking)}{_what_else(sizes)}", hint=wanted.hint
        )
    have = cached(wanted.hub_id, info.sha)
    missing = [name for name in files if have is None or not (have / name).is_file()]
    _refuse_too_big(wanted, sum(sizes[name] for name in missing))
    say(f"downloading {wanted.hub_id} ({size(sum(sizes[name] for name in missing))}) to {constants.HF_HUB_CACHE}")
    toggles = constants.HF_HUB_DISABLE_PROGRESS_BARS is None  # the environment variable has precedence
    at = Path()
    # Sequentially in this thread, where Ctrl-C interrupts a transfer at once. The first download stores the revision.
    for number, name in enumerate(dict.fromkeys([files[0], *missing])):
        if toggles:
            (enable_progress_bars if bars and sizes[name] >= WORTH_A_BAR else disable_progress_bars)()
        commit = revision if number == 0 else info.sha
        file = Path(hf_hub_download(wanted.hub_id, name, revision=commit, etag_timeout=TIMEOUT))
        at = at if number else file.parents[name.count("/")]
    return at


def _refuse_too_big(wanted: Wanted, num_bytes: int) -> None:
    """Raise InputError if the disk of the cache has less than `num_bytes` of free space."""
    cache = cache_folder()
    assert cache is not None
    at = next((folder for folder in (cache, *cache.absolute().parents) if folder.is_dir()), None)
    if at is not None and num_bytes > (free := shutil.disk_usage(at).free):
        raise InputError(
            f"{wanted.option}: {wanted.weights} take {size(num_bytes)}, the disk of {cache} has {size(free)}",
            hint=wanted.or_else("free some space, or HF_HOME=DIR on another disk"),
        )


def _what_else(names: Iterable[str]) -> str:
    """Description of the weights in a repository without the safetensors of a pipeline, as the end of a sentence."""
    names = list(names)
    single = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    if single:
        return f" in safetensors; it holds {single[0]}"
    pickles = [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    return f" in safetensors, but {pickles[0]}, a pickle, which could run code when it is read" if pickles else ""


def _input_error(wanted: Wanted, error: Exception) -> InputError:
    """Convert an error of `huggingface_hub` to an InputError with a hint."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if isinstance(error, hub.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    page = f"{constants.ENDPOINT}/{wanted.hub_id}"
    account = "`hf auth login`, or HF_TOKEN=..., identifies you"
    no_path = "no such folder, and " if wanted.or_path else ""
    absent = f"{wanted.option}: {no_path}{wanted.weights} are not on this machine"
    text = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    if (match := re.search(r"os error (\d+)", str(error))) and number is None:
        number = int(match[1])  # the format of libraries written in Rust
    match error:
        case hub.GatedRepoError():
            return InputError(f"{absent}, and come after their terms are accepted on {page}", hint=account)
        case hub.RevisionNotFoundError():
            return InputError(
                f"{wanted.option}: {wanted.hub_id} has no revision {wanted.revision}",
                hint=f"{page}/tree/main lists them",
            )
        case hub.RepositoryNotFoundError() | hub.HFValidationError():
            return InputError(
                f"{wanted.option}: {no_path}{constants.ENDPOINT} knows no model {wanted.hub_id}, or not for everyone",
                hint=wanted.or_else(f"for a private one: {account}"),
            )
        case hub.OfflineModeIsEnabled():
            return InputError(f"{absent}, and HF_HUB_OFFLINE forbids to fetch them", hint=wanted.hint)
        case hub.HfHubHTTPError():
            return InputError(f"{absent}, and {constants.ENDPOINT} answers: {text}", hint=wanted.hint)
        case OSError() | RuntimeError() if number in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
            errno.EPERM,
        ):
            return InputError(
                f"{wanted.option}: cannot write to {constants.HF_HUB_CACHE}: {reason(number)}",
                hint="free some space, or HF_HOME=DIR on another disk; finished files are kept",
            )
    return InputError(
        f"{absent}, and {constants.ENDPOINT} cannot be reached: {text}",
        hint=wanted.or_else("what was downloaded is kept, the same command continues"),
    )
