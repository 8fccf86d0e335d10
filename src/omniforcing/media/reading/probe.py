"""Probe video files: what a player would play of them, from packets and the first frames."""

from __future__ import annotations

import numpy as np

from omniforcing.media.reading.pictures import first_picture
from omniforcing.media.reading.sound import first_sound
from omniforcing.media.reading.tracks import MediaInfo, PathOrBytes, read_tracks


def probe(source: PathOrBytes, language: str | None = None) -> MediaInfo:
    """Read every packet of a file and decode its first frame and its first sound.

    Args:
        source: path or content of the file.
        language: language of the sound to prefer, as the file names it (``eng``).

    Returns:
        Properties of the tracks that a player would play.

    Raises:
        Rejected: if it is empty, truncated, no readable video, or lacks picture or sound.
    """
    tracks = read_tracks(source, language)
    video, audio = tracks.video_index, tracks.audio_index
    picture = first_picture(source, tracks)
    sound = first_sound(source, video, audio, tracks.edits.audio if tracks.edits else ())
    first, step = picture.time, tracks.step
    if tracks.times is None or tracks.video_end is None:
        # Frames without stamps follow each other at the mean rate.
        times = first + np.arange(tracks.frames) * step
        video_end = float(times[-1]) + step
    else:
        # Frames before the first cannot be shown: a file may begin within a group of pictures.
        times = tracks.times[tracks.times > first - step / 2]
        times = times if len(times) else np.array([first])
        video_end = max(tracks.video_end, float(times[-1]))
    return MediaInfo(
        times=times,
        video_end=video_end,
        audio_start=sound.time,
        audio_end=max(tracks.audio_end, sound.time),
        height=picture.height,
        width=picture.width,
        aspect=picture.aspect,
        fps=tracks.fps or len(times) / max(video_end - times[0], 1e-9),
        rate=sound.rate,
        channels=sound.channels,
        video_index=video,
        audio_index=audio,
        video_shift=tracks.video_shift,
        edits=tracks.edits,
        stated=tracks.stated,
        colour=picture.colour,
        interlaced=picture.interlaced,
        damage=tracks.damage,
    )
