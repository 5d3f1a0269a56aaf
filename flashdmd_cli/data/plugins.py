"""Picture formats that Pillow reads only with a plug-in, detected by their first bytes."""

from __future__ import annotations

import importlib
from functools import cache

from PIL import Image

from flashdmd_cli.data.items import PLUGINS, Rejected

_JXL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_MODULES = {"HEIC": ("pillow_heif", "register_heif_opener"), "JPEG XL": ("pillow_jxl", None)}
"""Format -> (module to import, function to call then) to register a plug-in."""


def format_of(data: bytes) -> str | None:
    """`HEIC`, `JPEG XL` or `AVIF` by the first bytes of a file; None for any other."""
    if data.startswith(_JXL):
        return "JPEG XL"
    if data[4:8] != b"ftyp":
        return None
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 200)]
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    return "HEIC" if any(brand in brands for brand in _HEIC) else None


def missing_reader(data: bytes) -> Rejected | None:
    """Register the plug-in for a picture file if it needs one; the rejection to raise if that is not installed.

    None for formats that Pillow can read now, so that any further error is the file's.
    """
    name = format_of(data)
    if name is None or _register(name):
        return None
    return Rejected(f"{name} not supported", f"pip install {PLUGINS[name]}" if name in _MODULES else PLUGINS[name])


@cache
def _register(name: str) -> bool:
    """Register the plug-in for a format; whether Pillow can read it now."""
    if name == "AVIF":
        Image.init()
        return "AVIF" in Image.OPEN
    module, register = _MODULES[name]
    try:
        plugin = importlib.import_module(module)
        if register is not None:
            getattr(plugin, register)()
    except ImportError:
        return False
    return True
