"""Decoding of picture files to upright sRGB, resizing, cropping and encoding. Uses Pillow, not torch."""

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
"""More than the 102 million of the largest camera; half a gigabyte decoded. Larger files are decompression bombs."""
DRAFT_GAP = 1.25
"""A picture that is reduced before resizing keeps at least this multiple of the final side."""
LARGE = 2**25
"""Pictures with more pixels (134 MB as RGBA) are reduced before colour conversion, which needs copies."""
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_SRGB = ImageCms.createProfile("sRGB")
# Some programs store their whole workflow as text in PNG files, scanners large profiles. Allow a single text chunk to
# have the size that Pillow allows for all of them, 64 MB, an eighth of the memory of the largest picture.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


@dataclass(frozen=True)
class Fitted:
    """A square picture, with its original size and crop position for SDXL's micro-conditioning."""

    picture: Image.Image  # RGB, side x side
    original: tuple[int, int]  # height, width of the upright original, in pixels
    corner: tuple[int, int]  # top, left of the crop, in pixels of the resized picture


@dataclass
class Opened:
    """A picture file whose header was read. `width` and `height` are those of the upright picture."""

    image: Image.Image
    width: int
    height: int
    data: bytes

    @property
    def columns(self) -> dict[str, float]:
        """Measured columns for filters."""
        return {
            "width": self.width,
            "height": self.height,
            "min_side": min(self.width, self.height),
            "aspect": self.width / self.height,
        }


def open_picture(data: bytes) -> Opened:
    """Read the header of a picture file in any format that Pillow supports; the file name is not used.

    Raises `Rejected`: `empty_file`, `undecodable`, `truncated`, `too_many_pixels`, `... not supported`.
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
            # After the size check, because Pillow decodes the whole PNG to find the orientation.
            turned = image.getexif().get(_ORIENTATION) in _TURNED
    except Rejected:
        raise
    # Malformed files can make decoders raise nearly any exception.
    except Exception as error:
        raise missing or _damage(error, data) from None
    return Opened(image, height, width, data) if turned else Opened(image, width, height, data)


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before rotation; for TIFF, `image.size` is after it in some versions of Pillow."""
    tags = getattr(image, "tag_v2", {})
    return (int(tags[256]), int(tags[257])) if image.format == "TIFF" else image.size


def _damage(error: Exception, data: bytes) -> Rejected:
    """The rejection for an exception of a decoder."""
    text = f"{type(error).__name__}: {error}"[:200]
    if isinstance(error, Image.DecompressionBombError):  # some formats learn their size when they are decoded
        return Rejected("too_many_pixels", text)
    # A WebP header contains the file size, but its decoder does not report truncation.
    short = data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    cut = short or any(word in text for word in ("truncated", "broken data stream"))
    return Rejected("truncated" if cut else "undecodable", text)


def decode(opened: Opened, side: int | None = None) -> tuple[Image.Image, list[str]]:
    """The upright picture in 8-bit sRGB, and the conversions that were needed (`exif`, `cmyk`, `16 bit`, `alpha`, ...).

    `side` is the final short side in pixels; large pictures may then be returned at reduced size, JPEGs at a half, a
    quarter or an eighth, which saves decoding time. Transparency becomes white; of an animation, the first frame is
    used. Raises `Rejected`: `undecodable`, `truncated`.
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
    """Convert to RGB on white. Colour profiles apply to 8-bit grey, RGB and CMYK, so palettes, 16 bits and transparency
    are converted before. `shrink` is a factor of reduction by averaging, as early as possible."""
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
    """The picture in a mode; unlike Pillow's `convert`, without a copy if it has that mode already."""
    return image if image.mode == mode else image.convert(mode)


def _with_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Convert by a profile to sRGB: the picture itself if it is in sRGB already, None for an invalid profile."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
            return image
        return ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _scaled(image: Image.Image) -> Image.Image:
    """Convert integer pixels of 16 bits (in 16 or 32) to 8 bits by scaling; Pillow's conversion would clip them.

    Cameras and microscopes store 9 to 12 bits in 16: if no value has 13 bits, the largest bit length is the range.
    """
    import numpy as np

    values = np.clip(np.asarray(image).astype(np.int32), 0, 2**16 - 1)
    bits = int(values.max()).bit_length()
    top = 2**16 - 1 if bits > 12 else 2 ** max(bits, 8) - 1
    return Image.fromarray(((values * 255 + top // 2) // top).astype(np.uint8))


def fit(image: Image.Image, side: int, original: tuple[int, int]) -> Fitted:
    """Resize the short side to `side` pixels (antialiased) and crop the centre; `original` is (height, width).

    Uses a Hamming filter for reduction and Lanczos for enlargement. Lanczos reduction takes two to three times as long;
    the results agree to a PSNR of 54 dB (docs/log/2026-11-21-prepare-data.md).
    """
    width, height = image.size
    resampling = Image.Resampling.HAMMING if min(width, height) > side else Image.Resampling.LANCZOS
    scale = side / min(width, height)
    # The short side is exact, the long one rounded, but never smaller than the crop.
    size = (side, max(side, round(height * scale))) if width <= height else (max(side, round(width * scale)), side)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    # Resample only the area of the crop.
    box = (left / size[0] * width, top / size[1] * height, (left + side) / size[0] * width,
           (top + side) / size[1] * height)  # fmt: skip
    if image.size != (side, side):
        image = image.resize((side, side), resampling, box=box)
    return Fitted(image, original, (top, left))


def encode(image: Image.Image, encoding: Encoding) -> bytes:
    """Encode a picture: `png` is lossless, `jpg` and `webp` have quality 95."""
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
