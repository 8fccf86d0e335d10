"""The artifact's model card, filled from its settings and the evaluation's figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omniforcing.layout import MEL_RATE, VIDEO_LATENTS_PER_SECOND

if TYPE_CHECKING:
    from omniforcing.stream.artifact import StreamSettings

_CARD = """---
library_name: diffusers
tags: [text-to-audio-video, streaming, ltx-2]
---
# omniforcing, preset {settings.preset}

A block-causal student of an LTX-2 teacher that streams picture and sound together from a text prompt:
{settings.width}x{settings.height} at {settings.fps} fps with {settings.sample_rate} Hz stereo,
{steps} denoising steps a block, {settings.window} past blocks visible beside the first.
It was trained on {settings.trained_seconds:g} s at a time; longer streams roll on with the same window.

```
omniforcing stream --artifact . --prompt TEXT --seconds 8 --seed 0 --out clip.mp4
```

`transformer/` opens with `diffusers.LTX2VideoTransformer3DModel.from_pretrained`; `streaming.json` says how to run it.
The picture waits {picture_ms:.0f} ms ({settings.video_look_ahead} video latents) and the sound {sound_ms} ms
({settings.look_ahead} mel frames) for what their decoders must know of the future; 0 is a causal decoder.

## Measured

{measured}

`real` are clips of the data (the ceiling), `codec` their reconstructions, `shuffled` the same clips with another clip's sound
(chance). `self_forcing` is the model in this folder.

## Limits

It has learnt what its training clips show and nothing else. The code is Apache-2.0; weights that come from LTX-2 stay under
LTX-2's own licence.
"""


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) and not isinstance(value, bool) else "-"


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one line per row, one column per metric that is a number in any row."""
    names = sorted({name for row in rows.values() for name, value in row.items() if _number(value) != "-"})
    lines = [["model", *names], ["---"] * (1 + len(names))]
    lines += [[model, *(_number(row.get(name)) for name in names)] for model, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured(metrics: Mapping[str, Any]) -> str:
    parts = []
    if models := metrics.get("models"):
        parts.append(_table(models))
    if speed := metrics.get("speed"):
        parts.append("\n".join(f"- {name}: {_number(value)}" for name, value in sorted(speed.items()) if _number(value) != "-"))
    return "\n\n".join(parts) or "Nothing: it was exported without an evaluation."


def model_card(settings: StreamSettings, metrics: Mapping[str, Any]) -> str:
    """README.md of an artifact: how to run it and what ``metrics`` (the schema of ``metrics.json``) says about it."""
    return _CARD.format(
        settings=settings,
        steps=len(settings.sigmas),
        picture_ms=1000 * settings.video_look_ahead / VIDEO_LATENTS_PER_SECOND,
        sound_ms=1000 * settings.look_ahead // MEL_RATE,
        measured=_measured(metrics),
    )
