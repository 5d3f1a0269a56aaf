"""Checks whether this machine has everything that the commands need. A check is a row (name, passed, message)."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

from flashdmd_cli import __version__
from flashdmd_cli.workflows.known_picture import check_picture

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "safetensors",
    "segment-anything",
    "peft",
    "webdataset",
    "tensorboard",
    "open_clip_torch",
    "clean-fid",
)
ASSETS = ("shapes-sdxl", "shapes-sd3", "shapes-sam", "inspector")


def check_packages() -> list[tuple[str, bool, str]]:
    """The installed version of each package."""
    rows = []
    for name in PACKAGES:
        try:
            rows.append((name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, False, f"missing: pip install {name}"))
    return rows


def check_device() -> tuple[str, bool, str]:
    """The device that training would use, and its number format."""
    try:
        import torch
    except ImportError as error:
        return "device", False, str(error)
    from flashdmd_cli.runs.device import resolve

    place = resolve()
    if place.device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        name = f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB"
    else:
        name = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return "device", True, f"{name}; {place}"


def check_assets() -> list[tuple[str, bool, str]]:
    """Whether the shipped models of the embedded world are installed."""
    from flashdmd_cli.shapes.assets import asset

    rows = []
    for name in ASSETS:
        try:
            folder = asset(name)
        except FileNotFoundError as error:
            rows.append((name, False, str(error)))
        else:
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            rows.append((name, True, f"{size / 1e6:.1f} MB"))
    return rows


def check_sdxl() -> tuple[str, bool, str]:
    """Whether SDXL's weights are on this machine. Passes in any case, since the embedded world does not need them."""
    from flashdmd_cli.families.layout import missing_parts
    from flashdmd_cli.families.sdxl.facts import SDXL
    from flashdmd_cli.runs.hub import cache_folder, cached

    folder = cached(SDXL.hub_id, None)
    if folder is not None and not missing_parts(folder, SDXL):
        return "sdxl", True, str(folder)
    where = "no home directory is known: set HF_HOME=DIR"
    return (
        "sdxl", True,
        f"{SDXL.hub_id} ({SDXL.size}) is not on this machine, and is downloaded when it is first used"
        + ("" if cache_folder() else f" ({where})")
        + "; the demo does not need it",
    )  # fmt: skip


def check_upstream() -> tuple[str, bool, str]:
    """Whether the environment of `eval --backend upstream` is built; fine without."""
    from flashdmd_cli.evaluation.backends.upstream import status

    return "upstream", True, status()


def check_folder() -> list[tuple[str, bool, str]]:
    """Free disk space and write permission in the current folder, where results are written by default."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return [("folder", False, "the current folder has been deleted: cd to another")]
    free = shutil.disk_usage(here).free / 2**30
    writable = os.access(here, os.W_OK)
    return [
        ("disk", free > 1, f"{free:.1f} GiB free in the current folder"),
        ("folder", writable, f"{here}" + ("" if writable else " cannot be written: give --out, or cd to another")),
    ]


def check_all() -> list[tuple[str, bool, str]]:
    """All checks, as rows (name, passed, message)."""
    return [
        ("flashdmd", True, __version__),
        ("python", True, platform.python_version()),
        *check_packages(),
        check_device(),
        *check_assets(),
        check_picture(),
        check_sdxl(),
        check_upstream(),
        *check_folder(),
    ]
