"""YAML texts of any origin as Python values, and such values in messages."""

from __future__ import annotations

from typing import Any

import yaml

MAX_DIGITS = 19
"""Longer integers fit into no setting, and Python refuses to print those of more than 4300 digits."""


class _Loader(yaml.SafeLoader):
    """The safe loader, with a limit for integers."""

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        value = int(self.construct_yaml_int(node))
        if abs(value) >= 10**MAX_DIGITS:
            raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; ValueError, in one line, for any other text.

    PyYAML raises more than its own errors: KeyError, IndexError or AttributeError for tags with wrong values,
    RecursionError for deep nesting.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def excerpt(value: object, most: int = 100) -> str:
    """A parsed value for a message, shortened to `most` characters; of lists and mappings only the length, since their
    text may be of any size."""
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return "an integer with too many digits"
    return text if len(text) <= most else f"{text[:most]}..."
