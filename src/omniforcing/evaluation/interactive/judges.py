"""Judges of a steered stream: does a second of it show, or sound like, the prompt that holds?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from omniforcing.core.pair import Media
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.models import ClapEncoder, ClipEncoder
from omniforcing.evaluation.measures.encoders.weights import Unusable, Weights
from omniforcing.pocket.events import colours_in, detect_audio_events, detect_video_events


class Judge(ABC):
    """Base of the judges.

    Attributes:
        name: name of its figures.
        sense: ``picture`` or ``sound``, what it looks at.
        protocol: how it decides.
    """

    name: ClassVar[str]
    sense: ClassVar[str]
    protocol: ClassVar[str]

    @abstractmethod
    def right(self, piece: Media, prompt: str, before: str | None) -> float | None:
        """How right a second is.

        Args:
            piece: frames uint8 ``[24, H, W, 3]`` and samples float32 ``[2, 16000]``.
            prompt: the prompt that holds.
            before: the one that held before; None for a stream's first.

        Returns:
            From 0, wrong, to 1; None where it cannot tell.
        """


class _Named(Judge):
    """The pocket world's truth: what its captions name."""

    def right(self, piece: Media, prompt: str, before: str | None) -> float | None:
        del before
        named = colours_in(prompt)
        return self.share(piece, named) if named else None

    @abstractmethod
    def share(self, piece: Media, named: list[str]) -> float | None:
        """How right a second is of which these colours are named."""


class BallColour(_Named):
    """The colours of the balls."""

    name = "ball_colour"
    sense = "picture"
    protocol = "pocket world; the second's balls have the colours that the prompt names"

    def share(self, piece: Media, named: list[str]) -> float | None:
        seen = detect_video_events(piece.video, len(named)).colours
        return float(sorted(seen) == sorted(named))


class ImpactTone(_Named):
    """The tones of the impacts."""

    name = "impact_tone"
    sense = "sound"
    protocol = "pocket world; share of the second's impacts with a tone of a named colour"

    def share(self, piece: Media, named: list[str]) -> float | None:
        heard = detect_audio_events(piece.audio).colours
        return float(np.mean([tone in named for tone in heard])) if heard else None


class _Encoded(Judge):
    """Nearer to the prompt that holds than to the one before, by an encoder."""

    encoder_kind: ClassVar[type[Any]]

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder

    @abstractmethod
    def features(self, clip: Clip) -> Any:
        """Features of the second, ``[D]`` or a row each of several frames."""

    def right(self, piece: Media, prompt: str, before: str | None) -> float | None:
        if before is None or before == prompt:
            return None
        features = self.features(Clip("", piece))
        new, old = (features @ self.encoder.text(text) for text in (prompt, before))
        return float(np.mean(new) > np.mean(old))


class ClipFollows(_Encoded):
    """CLIP on the picture."""

    name = "clip_follows"
    sense = "picture"
    protocol = "CLIP; the second's frames are nearer to the prompt than to the one before"
    encoder_kind = ClipEncoder

    def features(self, clip: Clip) -> Any:
        return self.encoder.frames(clip)


class ClapFollows(_Encoded):
    """CLAP on the sound."""

    name = "clap_follows"
    sense = "sound"
    protocol = "CLAP; the second's sound is nearer to the prompt than to the one before"
    encoder_kind = ClapEncoder

    def features(self, clip: Clip) -> Any:
        return self.encoder.sound(clip)


def judges(weights: Weights | None) -> tuple[list[Judge], dict[str, str]]:
    """All judges that can judge here.

    Args:
        weights: pretrained weights that the user has named.

    Returns:
        The judges, and by name why another one cannot.
    """
    able: list[Judge] = [BallColour(), ImpactTone()]
    missing = {}
    for kind in (ClipFollows, ClapFollows):
        try:
            able.append(kind((weights or Weights()).encoder(kind.encoder_kind)))
        except Unusable as error:
            missing[kind.name] = str(error)
    return able, missing
