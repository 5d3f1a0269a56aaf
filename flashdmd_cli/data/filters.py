"""Thresholds such as `aesthetic>=6.25`, on columns of the source or on measured ones such as the width."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flashdmd_cli.data.errors import DataError
from flashdmd_cli.data.items import Rejected

MEASURED_ON_CAPTIONS = ("caption_length",)
MEASURED_ON_PICTURES = ("width", "height", "min_side", "aspect")
"""Measured columns: characters of the caption; pixels of the upright picture, and its width / height."""

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}
_FORM = re.compile(r"\s*([^<>=!]+?)\s*(>=|<=|==|!=|>|<)\s*([^<>=!\s]+)\s*")


@dataclass(frozen=True)
class Filter:
    """Keep rows whose value in `column` fulfils `relation` with `bound`."""

    column: str
    relation: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Filter:
        """The filter for a text such as `aesthetic>=6.25`; `ValueError` if it is invalid."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError("is not of the form COLUMN>=NUMBER (also >, <, <=, ==, !=)")
        column, relation, bound = match.groups()
        number = as_number(bound)
        if number is None:
            raise ValueError(f"{bound} is not a number")
        return cls(column, relation, number)

    def __str__(self) -> str:
        whole = self.bound.is_integer() and abs(self.bound) < 1e15
        return f"{self.column}{self.relation}{int(self.bound) if whole else repr(self.bound)}"

    @property
    def measured_on_pictures(self) -> bool:
        """Whether the value is measured on the picture."""
        return self.column in MEASURED_ON_PICTURES

    @property
    def foreign(self) -> bool:
        """Whether the value is a column of the source."""
        return self.column not in (*MEASURED_ON_CAPTIONS, *MEASURED_ON_PICTURES)

    def check(self, columns: Mapping[str, Any]) -> None:
        """Raise `Rejected` if a row misses the threshold or has no number in the column."""
        value = as_number(columns.get(self.column))
        if value is None:
            raise Rejected(f"no {self.column}")
        if not _OPERATORS[self.relation](value, self.bound):
            raise Rejected(str(self), f"{self.column} is {value:g}")


def as_number(value: Any) -> float | None:
    """A finite number, also if it is written as text, as in CSV; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def require_columns(filters: Iterable[Filter], known: set[str], where: str) -> None:
    """Raise `DataError`, listing the available columns, for a filter on a column that the source does not have."""
    for each in filters:
        if each.foreign and each.column not in known:
            raise DataError(
                f"--filter {each}: {where} has no column {each.column}",
                f"columns there: {', '.join(sorted(known)) or 'none'}; "
                f"of every picture: {', '.join((*MEASURED_ON_CAPTIONS, *MEASURED_ON_PICTURES))}",
            )
