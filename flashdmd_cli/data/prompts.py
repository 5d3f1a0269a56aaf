"""Reads prompt files: text (one prompt a line), JSON (a list of prompts) or JSONL (as `prepare-data` writes it)."""

from __future__ import annotations

import json
from pathlib import Path

from flashdmd_cli.data.errors import DataError

PICKLE_SUFFIXES = {".pkl", ".pickle", ".pt", ".pth"}


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """Prompts of a UTF-8 file, at most `limit`: lines of a text file (empty ones skipped), a JSON list of strings, or
    JSON lines, each a string or an object with a `prompt`.

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
    if path.suffix == ".jsonl":
        prompts = [_from_line(path, line) for line in text.split("\n") if line.strip()]
    else:
        prompts = _from_json(path, text) if path.suffix == ".json" else text.splitlines()
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()][:limit]
    if not prompts:
        raise DataError(f"--prompts {path} holds no prompt", "give a text file, one prompt a line")
    return prompts


def _from_line(path: Path, line: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"--prompts {path} is not JSON lines: {error}", 'a line is {"prompt": "..."}') from None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise DataError(f"--prompts {path} has a line without a prompt", 'a line is {"prompt": "..."}')
    return prompt


def _from_json(path: Path, text: str) -> list[str]:
    try:
        prompts = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"--prompts {path} is not JSON: {error}", "give a list of strings") from None
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise DataError(f"--prompts {path} is not a JSON list of strings", 'write it as ["first prompt", "second"]')
    return prompts
