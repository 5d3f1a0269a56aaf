"""Sets of digests and perceptual hashes on disk, for duplicate detection in constant memory."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEAR_BITS = 3
"""Maximum number of different bits in the 64-bit perceptual hashes of near-duplicates."""
_BANDS = NEAR_BITS + 1
"""Near-duplicates have fewer different bits than there are bands, so at least one band is equal; this is the index."""
_BAND_BITS = 64 // _BANDS


@contextmanager
def scratch(path: Path) -> Iterator[sqlite3.Connection]:
    """A temporary, empty SQLite database; it is not synced, because no other run reads it.

    A full disk is an OSError that names `path`, as it is for other files.
    """
    path.unlink(missing_ok=True)
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-8000", "locking_mode=EXCLUSIVE"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN")
        yield connection
    except sqlite3.OperationalError as error:
        is_full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if is_full else errno.EIO, str(error), str(path)) from error
    finally:
        connection.close()
        path.unlink(missing_ok=True)


class Seen:
    """A set of byte strings in the table `name`."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection, self._name = connection, name
        connection.execute(f"CREATE TABLE {name} (value BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, value: bytes) -> bool:
        """Add `value`; whether it is new."""
        cursor = self._connection.execute(f"INSERT OR IGNORE INTO {self._name} VALUES (?)", (value,))
        return cursor.rowcount == 1


class SeenNear:
    """A set of 64-bit hashes with a search for near ones."""

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
        """Add a hash."""
        # SQLite's integers are signed.
        signed = value - 2**64 if value >= 2**63 else value
        rows = [(band, bits, signed) for band, bits in enumerate(_bands(value))]
        self._connection.executemany("INSERT OR IGNORE INTO near VALUES (?, ?, ?)", rows)


def _bands(value: int) -> list[int]:
    return [value >> (band * _BAND_BITS) & (2**_BAND_BITS - 1) for band in range(_BANDS)]
