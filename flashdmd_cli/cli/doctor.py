"""`flashdmd doctor`: is everything here that the commands need?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import typer

from flashdmd_cli import __version__
from flashdmd_cli.cli.options import AsJson, Debug, Quiet
from flashdmd_cli.cli.output import command

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
)
ASSETS = ("shapes-sdxl", "shapes-sam", "inspector")


def check_packages() -> list[tuple[str, bool, str]]:
    """(what, fine, said) for each package."""
    rows = []
    for name in PACKAGES:
        try:
            rows.append((name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            rows.append((name, False, f"missing: pip install {name}"))
    return rows


def check_device() -> tuple[str, bool, str]:
    """Where training would run."""
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
    """The shipped models of the embedded world."""
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
    """Whether SDXL's weights are at hand; fine without, since the embedded world needs none."""
    from flashdmd_cli.cli.sources import SDXL_ID, SDXL_SIZE, cached_folder

    folder = cached_folder(SDXL_ID)
    return (
        "sdxl",
        True,
        str(folder) if folder else f"{SDXL_ID} ({SDXL_SIZE}) is not here; the demo needs none",
    )


def doctor(as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Check packages, device, models and disk.

    Exit code 1 if something that the commands need is missing.
    """
    with command(as_json, quiet, debug) as output:
        free = shutil.disk_usage(Path.cwd()).free / 2**30
        rows = [
            ("flashdmd", True, __version__),
            ("python", True, platform.python_version()),
            *check_packages(),
            check_device(),
            *check_assets(),
            check_sdxl(),
            ("disk", free > 1, f"{free:.1f} GiB free here"),
            ("folder", os.access(Path.cwd(), os.W_OK), str(Path.cwd())),
        ]
        document = {"ok": all(fine for _, fine, _ in rows), "checks": {n: {"ok": f, "said": s} for n, f, s in rows}}
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{'ok    ' if fine else 'not ok'} {name:<{width}}  {said}" for name, fine, said in rows]
        output.result(document, lines, [name for name, fine, _ in rows if not fine])
        if not document["ok"]:
            raise typer.Exit(1)
