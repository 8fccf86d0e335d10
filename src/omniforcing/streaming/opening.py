"""Openings of a stream: a first frame, or a clip to go on from, encoded by the codec."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from omniforcing.codec.codec import Codec, normalise
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import Latents
from omniforcing.core.layout import (
    FPS,
    SAMPLE_RATE,
    BlockTable,
    clip_frames,
    clip_latents,
    clip_samples,
)
from omniforcing.core.pair import Pair
from omniforcing.streaming.generation import Opening
from omniforcing.streaming.request import IMAGE_BYTES

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP")
IMAGE_PIXELS = 50_000_000


class OpeningError(OmniForcingError):
    """An image or clip that no stream can begin with."""


def image_opening(data: bytes, codec: Codec) -> Opening:
    """Encode an image file's content as a first frame, cropped in the middle to the codec's size.

    Raises:
        OpeningError: if it is not a PNG, JPEG or WebP, is damaged, or is too large.
    """
    frame = torch.from_numpy(read_image(data, codec.height, codec.width))
    return Opening(image=normalise(codec.video_means(frame[None, None]), codec.video_vae))


def read_image(data: bytes, height: int, width: int) -> np.ndarray:
    """Read an image file's content as uint8 ``[height, width, 3]``, upright, cropped in the middle.

    Colours are those of the file's ICC profile, converted to sRGB. What is transparent lies on
    black. Of 16 bits the upper 8 are kept, of an animation the first picture.

    Raises:
        OpeningError: as ``image_opening``.
    """
    from PIL import Image, ImageOps  # an engine that opens no image does without

    if len(data) > IMAGE_BYTES:
        raise OpeningError(
            "streaming.image-too-large",
            f"the image has {len(data):,} bytes, at most {IMAGE_BYTES:,} are taken; scale it down",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # the limit below is ours
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        if image.width * image.height > IMAGE_PIXELS:
            raise OpeningError(
                "streaming.image-too-large",
                f"the image has {image.width}x{image.height} pixels, "
                f"at most {IMAGE_PIXELS:,} are taken; scale it down",
            )
        picture = ImageOps.fit(_as_rgb(ImageOps.exif_transpose(image)), (width, height))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OpeningError(
            "streaming.unreadable-image",
            f"the image cannot be read ({error}); give a {', '.join(IMAGE_FORMATS)} file",
        ) from error
    return np.array(picture)


def _as_rgb(image: Image) -> Image:
    """Convert an image of any mode to sRGB, with what is transparent on black."""
    from PIL import Image as images

    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip and not scale
        wide = np.asarray(image).astype(np.uint32)
        image = images.fromarray((wide >> 8).clip(0, 255).astype(np.uint8), "L")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    picture = _through_profile(image)
    if alpha is not None:
        picture = images.composite(picture, images.new("RGB", picture.size), alpha)
    return picture


def _through_profile(image: Image) -> Image:
    """Convert to RGB by the image's ICC profile; by Pillow's formulas where it has none that fits.

    Without it a picture of a phone (Display P3) would be paler than it looks there.
    """
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if image.mode not in ("L", "CMYK"):
        image = image.convert("L" if image.mode == "LA" else "RGB")
    if profile:
        try:
            own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, own, srgb, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):  # damaged, or of another colour model
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def clip_opening(path: Path, codec: Codec, table: BlockTable) -> Opening:
    """Encode the last whole seconds of a clip as the first blocks of a stream.

    Sound that is longer than the picture is cut, missing sound is silent.

    Raises:
        OpeningError: if the clip cannot be read, has another size than the codec, another rate
            than 24 fps, no sound, or lasts less than a second.
    """
    frames, samples = _read_clip(path, codec)
    seconds = (len(frames) - 1) // FPS
    if seconds < 1:
        raise OpeningError(
            "streaming.clip-too-short",
            f"{path} has {len(frames)} frames; "
            f"a stream can go on from {clip_frames(1)} or more, one second",
        )
    first = len(frames) - clip_frames(seconds)
    start = round(first / FPS * SAMPLE_RATE)
    sound = np.zeros((2, clip_samples(seconds)), np.float32)
    heard = samples[:, start : start + sound.shape[1]]
    sound[:, : heard.shape[1]] = heard
    latents = _encode(
        codec, Pair(torch.from_numpy(frames[first:])[None], torch.from_numpy(sound)[None])
    )
    blocks = table.blocks(table.count_for(clip_latents(seconds)))
    return Opening(
        blocks=[
            Pair(latents.video[:, b.video.slice], latents.audio[:, b.audio.slice]) for b in blocks
        ]
    )


def _encode(codec: Codec, media: Pair[Tensor]) -> Latents:
    try:
        return codec.encode(media)
    except ModuleNotFoundError as error:  # mel spectrograms are of the training side
        raise OpeningError(
            "package.missing",
            "to go on from a clip, its sound must be encoded, which needs the package "
            f"{error.name}; install it with pip install 'omniforcing[pipeline]'",
        ) from error


def _read_clip(path: Path, codec: Codec) -> tuple[np.ndarray, np.ndarray]:
    """Read all frames uint8 ``[T, H, W, 3]`` and samples float32 ``[2, N]`` at 16 kHz.

    Both begin with the first frame, and frames are taken by their time.
    """
    # An engine that opens no clip does without.
    from omniforcing.media.reading.pictures import PictureReader
    from omniforcing.media.reading.probe import probe
    from omniforcing.media.reading.sound import read_sound
    from omniforcing.media.reading.tracks import Rejected

    try:
        info = probe(path)
        found = f"{info.width}x{info.height} at {info.fps:.6g} fps"
        wanted = f"{codec.width}x{codec.height} at {FPS} fps"
        if found != wanted:
            raise OpeningError(
                "streaming.wrong-clip",
                f"{path} has {found}; a stream goes on from {wanted}: convert it first",
            )
        start = float(info.times[0])
        reader = PictureReader(path, info)
        count = round((float(info.times[-1]) - start) * FPS) + 1
        frames = np.empty((count, codec.height, codec.width, 3), np.uint8)
        for index in range(count):
            frames[index] = reader.at(start + index / FPS).rgb(reader.reformatter)
        sound = read_sound(path, start, (info.video_index, info.audio_index))
    except (OSError, Rejected) as error:
        raise OpeningError(
            "streaming.unreadable-clip",
            f"{path} is no readable clip with picture and sound ({error}); give an MP4",
        ) from error
    return frames, sound.samples
