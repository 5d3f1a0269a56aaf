"""Decoding and fitting: what every kind of file becomes, and what is refused."""

from __future__ import annotations

import io
import struct
import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin

from flashdmd_cli.data import pictures
from flashdmd_cli.data.items import REASONS, Rejected
from flashdmd_cli.data.pictures import decode, encode, fit, open_picture, thumbnail
from flashdmd_cli.data.plugins import _register
from flashdmd_cli.data.sources.survey import is_picture

from .messy import bomb, encoded, of_kind, picture, profile


def decoded(data: bytes, side: int | None = None) -> tuple[Image.Image, list[str]]:
    return decode(open_picture(data), side)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def reason(data: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        decoded(data)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "tif", "gif", "jpg"])
def test_every_format_comes_out_rgb(kind):
    image, notes = decoded(encoded(picture(1), kind, **({"lossless": True} if kind == "webp" else {})))
    assert (image.mode, image.size, notes) == ("RGB", (96, 80), [])
    tolerance = {"jpg": 12, "gif": 40}.get(kind, 0)
    assert np.abs(pixels(image) - pixels(picture(1))).mean() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(2), "png", exif=exif)
    opened = open_picture(data)
    image, notes = decode(opened)
    assert image.size == (opened.width, opened.height) == ((80, 96) if orientation >= 5 else (96, 80))
    assert ("exif" in notes) == (orientation != 1)
    assert np.array_equal(pixels(image), pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


def test_sixteen_bits_are_scaled_and_not_clipped():
    grey = np.linspace(0, 65535, 96 * 80).reshape(80, 96).astype(np.uint16)
    image, notes = decoded(encoded(Image.fromarray(grey)))
    assert notes == ["16 bit"]
    assert np.abs(pixels(image)[..., 0] - grey / 257).max() <= 0.5


@pytest.mark.parametrize("bits", [9, 10, 12])
def test_few_bits_in_sixteen_are_not_kept_nearly_black(bits):
    grey = np.linspace(0, 2**bits - 1, 96 * 80).reshape(80, 96).astype(np.uint16)
    for kind in ("png", "tif"):
        image, notes = decoded(encoded(Image.fromarray(grey), kind))
        assert notes == ["16 bit"]
        assert np.abs(pixels(image)[..., 0] - grey / (2**bits - 1) * 255).max() <= 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_tiff_is_that_of_the_upright_picture(orientation):
    opened = open_picture(encoded(picture(2), "tif", tiffinfo={0x0112: orientation}))
    image, _ = decode(opened)
    assert image.size == (opened.width, opened.height) == ((80, 96) if orientation >= 5 else (96, 80))


def test_a_large_picture_is_shrunk_before_its_colours_are_converted(monkeypatch):
    image = picture(12, 408, 300)
    image.putalpha(picture(13, 408, 300).convert("L"))
    whole, notes = decoded(encoded(image), 20)
    assert whole.size == (408, 300) and notes == ["alpha"]
    monkeypatch.setattr(pictures, "LARGE", 10_000)
    small, notes = decoded(encoded(image), 20)
    assert small.size == (34, 25) and notes == ["alpha"]
    one, two = (fit(each, 20, (300, 408)).picture for each in (small, whole))
    assert np.abs(pixels(one) - pixels(two)).mean() < 3


def test_transparent_parts_are_white():
    image = picture(3)
    image.putalpha(Image.new("L", image.size, 0))
    flat, notes = decoded(encoded(image))
    assert notes == ["alpha"] and pixels(flat).min() == 255
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    flat, notes = decoded(encoded(palette, transparency=0))
    assert notes == ["alpha"] and pixels(flat).min() == 255


def test_cmyk_is_inverted_properly():
    red = Image.new("CMYK", (40, 40), (0, 255, 255, 0))
    image, notes = decoded(encoded(red, "jpg", quality=95))
    assert notes == ["cmyk"] and np.abs(pixels(image).mean((0, 1)) - [255, 0, 0]).max() < 8


def test_a_foreign_colour_profile_is_brought_to_srgb():
    grey = Image.new("RGB", (16, 16), (120, 60, 200))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for other in (srgb, lab, b"no profile at all"):
        image, _ = decoded(encoded(grey, icc_profile=other))
        assert image.mode == "RGB"
    assert pixels(decoded(encoded(grey, icc_profile=srgb))[0])[0, 0].tolist() == [120, 60, 200]


def test_a_profile_is_applied_whatever_the_pixel_format():
    wide = profile()
    colours = Image.new("RGB", (8, 8), (200, 60, 40))
    expected, notes = decoded(encoded(colours, icc_profile=wide))
    assert notes == ["profile"] and pixels(expected)[0, 0, 0] > 225  # a red of Rec. 2020 is a stronger one in sRGB
    palette, notes = decoded(encoded(colours.quantize(4), icc_profile=wide))
    assert notes == ["profile"] and np.abs(pixels(palette) - pixels(expected)).max() <= 1
    half = colours.convert("RGBA")
    half.putpixel((0, 0), (200, 60, 40, 0))
    for image in (half, half.quantize(8, Image.Quantize.FASTOCTREE)):
        laid, notes = decoded(encoded(image, icc_profile=wide))
        assert notes == ["alpha", "profile"] and pixels(laid)[0, 0].min() == 255
        assert np.abs(pixels(laid)[1:] - pixels(expected)[1:]).max() <= 3
    linear = profile(grey=True)
    grey = Image.new("L", (8, 8), 128)  # half of the light: 188 in sRGB
    deep = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    for image, what in ((grey, []), (grey.convert("LA"), ["alpha"]), (deep, ["16 bit"])):
        upright, notes = decoded(encoded(image, icc_profile=linear))
        assert notes == [*what, "profile"] and pixels(upright)[0, 0].tolist() == [188] * 3


def test_a_workflow_beside_the_pixels_does_no_harm():
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "{}" * 2**20)
    info.add_text("prompt", "x" * 3 * 2**20, zip=True)
    info.add_itxt("parameters", "ü" * 2**20, zip=True)
    image, notes = decoded(encoded(picture(11), pnginfo=info))
    assert notes == [] and np.array_equal(pixels(image), pixels(picture(11)))
    info.add_text("bomb", "\0" * (65 * 2**20), zip=True)
    assert reason(encoded(picture(11), pnginfo=info)) == "undecodable"


HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + b"rest of the file"
JXL = b"\xff\x0a rest of the file"


@pytest.mark.parametrize(
    ("data", "name", "package", "module"),
    [(HEIC, "HEIC", "pillow-heif", "pillow_heif"), (JXL, "JPEG XL", "pillow-jxl-plugin", "pillow_jxl")],
)
def test_a_format_that_wants_a_plug_in(data, name, package, module, monkeypatch):
    _register.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    assert is_picture("a.heic") and is_picture("b.JXL")
    with pytest.raises(Rejected) as caught:
        open_picture(data)
    assert (caught.value.reason, caught.value.detail) == (f"{name} not supported", f"pip install {package}")
    assert package in REASONS[caught.value.reason]

    class Plugin(ImageFile.ImageFile):
        format = "FAKE"

        def _open(self) -> None:
            self._size, self._mode, self.tile = (6, 4), "RGB", []

        def load(self) -> Any:
            self.im = Image.new("RGB", self.size, "red").im
            return Image.Image.load(self)

    def register() -> None:
        Image.register_open("FAKE", Plugin, lambda prefix: data.startswith(prefix[:4]))

    found = types.ModuleType(module)
    found.register_heif_opener = register
    monkeypatch.setitem(sys.modules, module, found)
    monkeypatch.setattr(Image, "ID", [*Image.ID])
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    if module == "pillow_jxl":  # registers itself on import
        register()
    _register.cache_clear()
    image, _ = decoded(data)
    assert image.size == (6, 4) and pixels(image)[0, 0].tolist() == [255, 0, 0]
    _register.cache_clear()


def test_of_an_animation_the_first_picture_is_taken():
    data, _ = of_kind(4, "animated")
    image, notes = decoded(data)
    assert notes == ["animated"]
    assert np.abs(pixels(image) - pixels(picture(4))).mean() < 40


def test_what_is_refused():
    whole = encoded(picture(5), "jpg")
    assert reason(b"") == "empty_file"
    assert reason(b"<html>not found</html>") == "undecodable"
    assert reason(whole[: len(whole) // 2]) == "truncated"
    assert reason(encoded(picture(5))[:-200]) == "truncated"
    assert reason(bomb()) == "too_many_pixels"
    assert reason(bomb(13_000, 13_000)) == "too_many_pixels"
    assert reason(encoded(Image.new("F", (4, 4)), "tif")) == "undecodable"


@given(st.binary(max_size=300), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_no_bytes_do_more_than_be_rejected(noise, which):
    start = [b"", *(encoded(picture(6, 20, 16), kind)[:80] for kind in ("jpg", "png", "webp", "gif", "tif"))][which]
    try:
        image, _ = decoded(start + noise, 8)
        assert image.mode == "RGB"
    except Rejected as rejected:
        known = {"empty_file", "undecodable", "truncated", "too_many_pixels"}
        assert rejected.reason in known or rejected.reason.endswith("not supported")


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_fit_gives_a_square_from_the_middle(width, height, side):
    fitted = fit(picture(7, width, height), side, (height, width))
    assert fitted.picture.size == (side, side) and fitted.original == (height, width)
    top, left = fitted.corner
    assert min(top, left) == 0 and max(top, left) <= side * max(width, height) / min(width, height) / 2 + 1


def test_fit_is_the_crop_of_the_resized_whole():
    whole = picture(8, 400, 200)
    fitted = fit(whole, 50, (200, 400))
    assert fitted.corner == (0, 25)
    reference = whole.resize((100, 50), Image.Resampling.LANCZOS).crop((25, 0, 75, 50))
    assert np.abs(pixels(fitted.picture) - pixels(reference)).mean() <= 2


def test_shrinking_while_decoding_looks_like_shrinking_afterwards():
    big = encoded(picture(9, 1600, 1200, cells=40), "jpg", quality=95)
    opened = open_picture(big)
    shrunk, _ = decode(opened, 100)
    assert shrunk.size == (200, 150) and (opened.width, opened.height) == (1600, 1200)
    whole, _ = decoded(big)
    one, two = (fit(image, 100, (1200, 1600)) for image in (shrunk, whole))
    assert one.corner == two.corner
    assert np.abs(pixels(one.picture) - pixels(two.picture)).mean() < 2


@pytest.mark.parametrize("encoding", ["png", "jpg", "webp"])
def test_encodings(encoding):
    image = picture(10)
    again = Image.open(io.BytesIO(encode(image, encoding)))
    assert np.abs(pixels(again.convert("RGB")) - pixels(image)).mean() <= (0 if encoding == "png" else 4)
    assert max(Image.open(io.BytesIO(thumbnail(image, 32))).size) == 32
