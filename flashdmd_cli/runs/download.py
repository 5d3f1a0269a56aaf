"""Download of single files that are not on the Hugging Face hub, into torch.hub's folder."""

from __future__ import annotations

import http.client
import os
import re
import socket
import urllib.error
from dataclasses import dataclass
from pathlib import Path

from flashdmd_cli.runs.errors import InputError
from flashdmd_cli.runs.files import expanded, reason
from flashdmd_cli.runs.reporter import Reporter

TIMEOUT = 10.0
"""Seconds without a byte after which a connection counts as broken."""


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL, and texts for error messages about it."""

    option: str
    """Option, recipe key or metric: the start of an error message."""
    url: str
    size: str
    """For messages: `375 MB`."""
    source: str
    """For messages: whose file it is."""
    hint: str
    """How a local file is given."""

    @property
    def name(self) -> str:
        """If it ends with `_` or `-` and hexadecimal digits, these are the beginning of its SHA-256."""
        return self.url.rpartition("/")[2]


def cache_folder() -> Path:
    """torch.hub's folder for weights (TORCH_HOME), found without torch, which takes seconds to load."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return expanded(os.environ.get("TORCH_HOME", os.path.join(caches, "torch"))) / "hub" / "checkpoints"


def fetch_file(file: RemoteFile, reporter: Reporter, download: bool = True) -> Path:
    """The file in torch.hub's folder, downloaded if it is not there; InputError, in one line, if that fails."""
    folder = cache_folder()
    at = folder / file.name
    if at.is_file():
        return at
    what = f"{file.option}: {file.name} ({file.size}) of {file.source} is not on this machine"
    if str(folder).startswith("~"):
        raise InputError(f"{what}, and no home directory is known", hint=f"set TORCH_HOME=DIR; {file.hint}")
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise InputError(f"{what}, and HF_HUB_OFFLINE forbids downloading it", hint=file.hint)
    if not download:
        raise InputError(what, hint=file.hint)
    reporter.say(f"downloading {file.url} ({file.size}) to {folder}")
    import torch

    prefix = re.search(r"[-_]([0-9a-f]{6,})\.pth$", file.name)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Writes to a temporary file and renames it after checking the hash.
        bars = reporter.draws_bars
        torch.hub.download_url_to_file(file.url, str(at), hash_prefix=prefix and prefix[1], progress=bars)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        why = getattr(error, "reason", None) or error
        raise InputError(f"{what}, and {file.url} cannot be reached: {why}", hint=file.hint) from error
    except RuntimeError as error:
        raise InputError(
            f"{file.option}: {file.url} does not have the expected hash: {error}", hint=f"try again; {file.hint}"
        ) from error
    except OSError as error:
        hint = f"free some space, or set TORCH_HOME=DIR; {file.hint}"
        raise InputError(f"{file.option}: cannot write to {folder}: {reason(error.errno or 0)}", hint=hint) from error
    finally:
        socket.setdefaulttimeout(before)
    return at
