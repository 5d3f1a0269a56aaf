"""Memory of models that are not used any more goes back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from flashdmd_cli.families.memory import free_memory

SIZE = 4 * 2**20


def resident() -> int:
    """Bytes of memory that this process has for itself."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed blocks")
def test_freed_blocks_between_others_go_back_to_the_system() -> None:
    """glibc takes blocks from its heap once a block of that size was freed, and gives back only the heap's end."""
    torch.ones(2 * SIZE // 4)  # freed at once
    blocks, between = [], []
    for _ in range(32):
        blocks.append(torch.ones(SIZE // 4))
        between.append(torch.ones(100_000))
    full = resident()
    del blocks
    free_memory()
    assert full - resident() > 28 * SIZE and between
