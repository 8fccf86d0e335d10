"""First frames as people have them: every kind of image file in its own colours, upright."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from omniforcing.streaming.opening import read_image

RED, GREEN = (200, 40, 40), (40, 180, 40)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def flat(colour: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.full((64, 64, len(colour)), colour, np.uint8))


def two_halves() -> Image.Image:
    """Green above, red below."""
    image = flat(RED)
    image.paste(GREEN, (0, 0, 64, 32))
    return image


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value  # the tag of the orientation
    return exif


def wide_grey(level: int) -> bytes:
    return saved(Image.fromarray(np.full((64, 64), level, np.uint16)), "PNG")


ANIMATED = {"save_all": True, "append_images": [flat(GREEN)], "duration": 100, "lossless": True}
PALETTE = flat(RED).quantize(2)
FILES = {
    "png": (saved(flat(RED), "PNG"), RED),
    "16-bit grey": (wide_grey(128 * 257), (128, 128, 128)),
    "16-bit black": (wide_grey(0), (0, 0, 0)),
    "16-bit white": (wide_grey(65535), (255, 255, 255)),
    "8-bit grey": (saved(flat(RED).convert("L"), "PNG"), (88, 88, 88)),
    "one bit": (saved(flat((255, 255, 255)).convert("1"), "PNG"), (255, 255, 255)),
    "opaque": (saved(flat((*RED, 255)), "PNG"), RED),
    "transparent white": (saved(flat((255, 255, 255, 0)), "PNG"), (0, 0, 0)),
    "half transparent": (saved(flat((200, 100, 40, 128)), "PNG"), (100, 50, 20)),
    "transparent grey": (saved(flat((200, 128)), "PNG"), (100, 100, 100)),
    "palette": (saved(PALETTE, "PNG"), RED),
    "palette, this colour transparent": (
        saved(PALETTE, "PNG", transparency=PALETTE.getpixel((0, 0))),
        (0, 0, 0),
    ),
    "transparent webp": (saved(flat((*RED, 0)), "WEBP", lossless=True, exact=True), (0, 0, 0)),
    "cmyk": (saved(flat(RED).convert("CMYK"), "JPEG", quality=95), RED),
    "webp": (saved(flat(RED), "WEBP", lossless=True), RED),
    "animated webp": (saved(flat(RED), "WEBP", **ANIMATED), RED),
    "damaged profile": (saved(flat(RED), "PNG", icc_profile=b"no profile"), RED),
    "profile of another colour model": (
        saved(
            flat(RED),
            "PNG",
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        ),
        RED,
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_an_image_keeps_its_colour(name: str) -> None:
    data, colour = FILES[name]
    assert np.abs(read_image(data, 64, 64).astype(int) - colour).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("value", "green"), [(1, "top"), (3, "bottom"), (6, "right"), (8, "left")])
def test_an_image_stands_upright(kind: str, value: int, green: str) -> None:
    image = read_image(saved(two_halves(), kind, exif=turned(value), quality=95), 64, 64)
    rows, columns = np.nonzero(image[..., 1] > image[..., 0])
    lean = {"bottom": rows.mean() - 31.5, "right": columns.mean() - 31.5}
    lean |= {"top": -lean["bottom"], "left": -lean["right"]}
    assert max(lean, key=lambda side: lean[side]) == green and lean[green] > 14


def test_colours_follow_the_profile() -> None:
    """A file whose profile swaps no channel but has other primaries: its red is no sRGB red."""
    white = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    same = read_image(saved(flat(RED), "PNG", icc_profile=white.tobytes()), 64, 64)
    assert np.abs(same.astype(int) - RED).max() <= 1
    wide = white.tobytes().replace(primaries(white)[:12], primaries(white)[:8] + bytes(4))
    other = read_image(saved(flat(RED), "PNG", icc_profile=wide), 64, 64)
    assert np.abs(other.astype(int) - RED).max() > 3


def primaries(profile: ImageCms.ImageCmsProfile) -> bytes:
    """The X, Y, Z of a profile's red, three numbers of 16.16 bits."""
    colorant = profile.profile.red_colorant
    assert colorant is not None
    values = np.array(colorant[0])
    return b"".join(round(v * 65536).to_bytes(4, "big") for v in values)
