"""Memory of models that are not used any more."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def free_memory() -> None:
    """Return the memory of models that nothing refers to any more to the system.

    Parts of a model refer to each other, so that only the garbage collector frees it. And glibc keeps freed blocks of
    up to 32 MB for later use: after a text encoder of 2.8 GB, up to 2 GB, which matrices of other sizes do not reuse.
    """
    gc.collect()
    with suppress(OSError, AttributeError, TypeError):  # other systems have no such function
        ctypes.CDLL(None).malloc_trim(0)
