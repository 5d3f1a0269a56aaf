"""What came before: digests and perceptual hashes on disk, so that memory does not grow with the collection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEAR_BITS = 3
"""Perceptual hashes of 64 bits that differ in at most so many bits are nearly the same picture."""
_BANDS = NEAR_BITS + 1
"""Two hashes that differ in fewer places than there are bands agree in at least one band: only those are compared."""
_BAND_BITS = 64 // _BANDS


@contextmanager
def scratch(path: Path) -> Iterator[sqlite3.Connection]:
    """An empty database in a file that is gone afterwards. It is never read by another run, so nothing is synced."""
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-8000", "locking_mode=EXCLUSIVE"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN")
        yield connection
    finally:
        connection.close()
        path.unlink(missing_ok=True)


class Seen:
    """A growing set of byte strings under a name of its own."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection, self._name = connection, name
        connection.execute(f"CREATE TABLE {name} (value BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, value: bytes) -> bool:
        """Whether `value` is new; it is not any more."""
        done = self._connection.execute(f"INSERT OR IGNORE INTO {self._name} VALUES (?)", (value,))
        return done.rowcount == 1


class SeenNear:
    """A growing set of 64-bit hashes that knows whether one near to a new one is there already."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute(
            "CREATE TABLE near (band INT, bits INT, value INT, PRIMARY KEY (band, bits, value)) WITHOUT ROWID"
        )

    def near(self, value: int) -> bool:
        """Whether a hash within `NEAR_BITS` bits of `value` was added before."""
        return any(
            (value ^ (other & (2**64 - 1))).bit_count() <= NEAR_BITS
            for band, bits in enumerate(_bands(value))
            for (other,) in self._connection.execute("SELECT value FROM near WHERE band = ? AND bits = ?", (band, bits))
        )

    def add(self, value: int) -> None:
        """Remember a hash."""
        # SQLite's integers are signed.
        signed = value - 2**64 if value >= 2**63 else value
        rows = [(band, bits, signed) for band, bits in enumerate(_bands(value))]
        self._connection.executemany("INSERT OR IGNORE INTO near VALUES (?, ?, ?)", rows)


def _bands(value: int) -> list[int]:
    return [value >> (band * _BAND_BITS) & (2**_BAND_BITS - 1) for band in range(_BANDS)]
