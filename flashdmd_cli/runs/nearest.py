"""Suggestions for misspelt names in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from flashdmd_cli.runs.errors import UsageError


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean NAME?` with the most similar of `words`, or an empty text. Of dotted keys the last part counts
    too."""
    words = list(words)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not close:
        last = word.rpartition(".")[2]
        ends = difflib.get_close_matches(last, [each.rpartition(".")[2] for each in words], n=1, cutoff=0.75)
        close = [each for each in words if each.rpartition(".")[2] in ends or last and last in each][:1]
    return f"; did you mean {close[0]}?" if close else ""


def unknown(option: str, value: str, choices: Iterable[str]) -> UsageError:
    """The error for a `value` of an option that is none of `choices`, with the most similar one and all of them."""
    choices = list(choices)
    return UsageError(f"{option} {value}: unknown{nearest(value, choices)}", hint=f"one of {', '.join(choices)}")
