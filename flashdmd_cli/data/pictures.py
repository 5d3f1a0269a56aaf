"""From a file's bytes to an upright sRGB picture, and from that to the square a run trains on. Pillow, no torch."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from flashdmd_cli.data.items import Rejected
from flashdmd_cli.data.plugins import missing_reader

Encoding = Literal["png", "jpg", "webp"]
MAX_PIXELS = 2**27
"""Above the largest camera's 102 million; half a gigabyte when decoded. What claims more is a decompression bomb."""
DRAFT_GAP = 1.25
"""A picture that is shrunk on the way keeps at least so many times the pixels a side that are wanted."""
LARGE = 2**25
"""Above so many pixels, 134 MB of RGBA, a picture is shrunk before its colours are converted, which takes copies."""
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_SRGB = ImageCms.createProfile("sRGB")
# Programs write their whole workflow beside the pixels, scanners large profiles: one such text may be as long as Pillow
# allows for all of a file together, 64 MB, an eighth of what the largest picture takes.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


@dataclass(frozen=True)
class Fitted:
    """A square picture, and what SDXL's micro-conditioning wants to know of how it was cut."""

    picture: Image.Image  # RGB, side x side
    original: tuple[int, int]  # height, width of the upright original, in pixels
    corner: tuple[int, int]  # top, left of the crop, in pixels of the resized picture


@dataclass
class Opened:
    """A picture of which only the header was read. `width` and `height` are those of the upright picture."""

    image: Image.Image
    width: int
    height: int
    data: bytes

    @property
    def columns(self) -> dict[str, float]:
        """What filters can ask of every picture."""
        return {
            "width": self.width,
            "height": self.height,
            "min_side": min(self.width, self.height),
            "aspect": self.width / self.height,
        }


def open_picture(data: bytes) -> Opened:
    """Read the header of a picture file of any format that Pillow knows, whatever its name says.

    `Rejected`: `empty_file`, `undecodable`, `truncated`, `too_many_pixels`, `... not supported`.
    """
    if not data:
        raise Rejected("empty_file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            missing = missing_reader(data)
            image = Image.open(io.BytesIO(data))
            width, height = _stored_size(image)
            if min(width, height) < 1:
                raise Rejected("undecodable", f"{width} x {height} pixels")
            if width * height > MAX_PIXELS:
                raise Rejected("too_many_pixels", f"{width} x {height}")
            # After the size: to find this mark in a PNG, Pillow decodes all of it.
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except Image.DecompressionBombError as error:
        raise Rejected("too_many_pixels", str(error)) from None
    except Rejected:
        raise
    # A hostile file can make a decoder raise nearly anything; whatever it is, the file is no use.
    except Exception as error:
        raise missing or _damage(error, data) from None
    return Opened(image, height, width, data) if turned else Opened(image, width, height, data)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before any rotation. Of a TIFF some versions of Pillow tell them as they are after it."""
    tags = getattr(image, "tag_v2", {})
    return (int(tags[256]), int(tags[257])) if image.format == "TIFF" else image.size


def _damage(error: Exception, data: bytes) -> Rejected:
    """What is wrong with a file that a decoder gave up."""
    text = f"{type(error).__name__}: {error}"[:200]
    # A WebP says how long it is, but its decoder does not say that it is shorter.
    short = data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    cut = short or any(word in text for word in ("truncated", "broken data stream"))
    return Rejected("truncated" if cut else "undecodable", text)


def decode(opened: Opened, side: int | None = None) -> tuple[Image.Image, list[str]]:
    """The upright picture in 8-bit sRGB, and what had to be converted (`exif`, `cmyk`, `16 bit`, `alpha`, ...).

    `side`: the short side that is wanted in the end, in pixels. A JPEG may then come at half, a quarter or an eighth of
    its size: the decoder averages while it decodes. Transparent parts are laid on white; of an animation the first
    picture is taken. `Rejected`: `undecodable`, `truncated`.
    """
    image = opened.image
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if getattr(image, "is_animated", False):
                notes.append("animated")
            if side is not None and image.mode in ("RGB", "L"):
                scale = DRAFT_GAP * side / min(image.size)
                image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            image.load()
            if image.getexif().get(_ORIENTATION, 1) != 1:
                notes.append("exif")
                ImageOps.exif_transpose(image, in_place=True)
            shrink = 1
            if side is not None and image.width * image.height > LARGE:
                shrink = max(1, int(min(image.size) / (DRAFT_GAP * side)))
            return _to_srgb(image, notes, shrink), notes
    except Rejected:
        raise
    except Exception as error:  # as in `open_picture`
        raise _damage(error, opened.data) from None


def _to_srgb(image: Image.Image, notes: list[str], shrink: int) -> Image.Image:
    """RGB on white. A profile knows grey, RGB and CMYK in 8 bits, so palettes, 16 bits and transparent parts go first.
    `shrink`: squares of so many pixels a side become one, as soon as they can be averaged."""
    profile = image.info.get("icc_profile")
    transparent = image.mode in _TRANSPARENT or "transparency" in image.info
    if image.mode in _SIXTEEN_BITS or image.mode == "I":
        notes.append("16 bit")
        image, transparent = _scaled(image), False
    if image.mode == "F":
        raise Rejected("undecodable", "floating-point pixels have no known range")
    if transparent:
        notes.append("alpha")
        image = _as(image, "LA" if image.mode in ("L", "LA", "La") else "RGBA")
    elif image.mode in ("1", "P"):
        image = _as(image, "RGB" if image.mode == "P" else "L")
    if shrink > 1:
        image = image.reduce(shrink)
    if transparent:
        ground = Image.new(image.mode.removesuffix("A"), image.size, "white")
        ground.paste(image, mask=image)
        image = ground
    if image.mode == "CMYK":
        notes.append("cmyk")
    if profile and image.mode in ("RGB", "CMYK", "L"):
        converted = _with_profile(image, profile)
        if converted is not None:
            if converted is not image:
                notes.append("profile")
            image = converted
    return _as(image, "RGB")


def _as(image: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode; Pillow's `convert` alone would copy also where nothing is to do."""
    return image if image.mode == mode else image.convert(mode)


def _with_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture in sRGB by its own colour profile; itself when that is sRGB already, None when it is no use."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
            return image
        return ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _scaled(image: Image.Image) -> Image.Image:
    """Integer pixels of 16 bits (or of 32 bits that hold 16) as 8 bits; Pillow's own conversion would clip them.

    Cameras and microscopes store 9 to 12 bits in 16: a picture without a value of 13 bits is taken for one of those.
    """
    import numpy as np

    values = np.clip(np.asarray(image).astype(np.int32), 0, 2**16 - 1)
    bits = int(values.max()).bit_length()
    top = 2**16 - 1 if bits > 12 else 2 ** max(bits, 8) - 1
    return Image.fromarray(((values * 255 + top // 2) // top).astype(np.uint8))


def fit(image: Image.Image, side: int, original: tuple[int, int]) -> Fitted:
    """Resize the short side to `side` pixels (antialiased) and cut the centre; `original` is height, width.

    Hamming's filter shrinks, Lanczos' enlarges. Shrinking by Lanczos costs two to three times as much and gives the
    same to 54 dB (docs/log/2026-11-21-prepare-data.md).
    """
    width, height = image.size
    resampling = Image.Resampling.HAMMING if min(width, height) > side else Image.Resampling.LANCZOS
    scale = side / min(width, height)
    # The short side exactly, the long one rounded: never a pixel short of the crop.
    size = (side, max(side, round(height * scale))) if width <= height else (max(side, round(width * scale)), side)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    # Only what the crop shows is resampled.
    box = (left / size[0] * width, top / size[1] * height, (left + side) / size[0] * width,
           (top + side) / size[1] * height)  # fmt: skip
    if image.size != (side, side):
        image = image.resize((side, side), resampling, box=box)
    return Fitted(image, original, (top, left))


def encode(image: Image.Image, encoding: Encoding) -> bytes:
    """A file's bytes. `png` loses nothing; `jpg` and `webp` are written at quality 95."""
    stream = io.BytesIO()
    if encoding == "png":
        image.save(stream, "PNG", compress_level=3)
    elif encoding == "jpg":
        image.save(stream, "JPEG", quality=95)
    else:
        image.save(stream, "WEBP", quality=95, method=2)
    return stream.getvalue()


def thumbnail(image: Image.Image, side: int = 112) -> bytes:
    """A small JPEG for the report."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return stream.getvalue()
