"""Reads prompt files: text (one prompt a line) or JSON (a list of prompts)."""

from __future__ import annotations

import json
from pathlib import Path

from flashdmd_cli.data.errors import DataError

PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth"}


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """Prompts of a UTF-8 file, at most `limit`: lines of a text file (empty ones skipped), or a JSON list of strings.

    Raises `DataError` if the file is missing, unreadable, empty or a pickle.
    """
    if path.suffix in PICKLE_SUFFIXES:
        raise DataError(
            f"--prompts {path} is a pickle, which can run code when it is read",
            "convert it where you trust it: json.dump(list_of_prompts, open('prompts.json', 'w'))",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--prompts {path} cannot be read: {error}", "give a UTF-8 text file, one prompt a line"
        ) from None
    prompts = _from_json(path, text) if path.suffix == ".json" else text.splitlines()
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()][:limit]
    if not prompts:
        raise DataError(f"--prompts {path} holds no prompt", "give a text file, one prompt a line")
    return prompts


def _from_json(path: Path, text: str) -> list[str]:
    try:
        prompts = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"--prompts {path} is not JSON: {error}", "give a list of strings") from None
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise DataError(f"--prompts {path} is not a JSON list of strings", 'write it as ["first prompt", "second"]')
    return prompts
