"""The model card of an artifact: README.md, whose front matter the Hub and other tools read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.layout import MEL_RATE, VIDEO_LATENTS_PER_SECOND

CARD, SAMPLE = "README.md", "sample.mp4"
_MODEL = "self_forcing"  # row of the evaluation's figures that is of the artifact's student
_TASK = {"type": "text-to-video", "name": "Text to video with sound"}

_CARD = """---
{front_matter}---
# omniforcing, preset {preset}

A block-causal student of an LTX-2 teacher that streams picture and sound together from a text prompt:
{width}x{height} at {fps} fps with {sample_rate} Hz stereo,
{steps} denoising steps a block, {window} past blocks visible beside the first.
It was trained on {trained_seconds:g} s at a time; longer streams roll on with the same window.

```
omniforcing stream --artifact . --prompt TEXT --seconds 8 --seed 0 --out clip.mp4
```

On the Hub its name takes the place of the folder: `--artifact ORG/NAME`, or `Engine("ORG/NAME")` in Python.
`transformer/` opens with `diffusers.LTX2VideoTransformer3DModel.from_pretrained`; `streaming.json` says how to run it.
The picture waits {picture_ms:.0f} ms ({video_look_ahead} video latents) and the sound {sound_ms} ms
({look_ahead} mel frames) for what their decoders must know of the future; 0 is a causal decoder.

## Measured

{measured}

`real` are clips of the data (the ceiling), `codec` their reconstructions, `shuffled` the same clips with another clip's sound
(chance). `self_forcing` is the model in this folder.

## Limits

It has learnt what its training clips show and nothing else. The code is Apache-2.0; weights that come from LTX-2 stay under
LTX-2's own licence.
"""


@dataclass(frozen=True)
class CardFacts:
    """What a card states that neither settings nor metrics say.

    Attributes:
        licence: licence of the weights, by the Hub's identifier, or by a name of its own if it has
            a link; None if nobody said.
        licence_link: address of a licence that the Hub does not know.
        base_model: model on the Hub that the teacher came from; None for one of one's own.
        sample: prompt of the clip ``sample.mp4`` beside the card; None without one.
    """

    licence: str | None = None
    licence_link: str | None = None
    base_model: str | None = None
    sample: str | None = None


NO_FACTS = CardFacts()


def model_card(
    settings: Mapping[str, Any], metrics: Mapping[str, Any], facts: CardFacts = NO_FACTS
) -> str:
    """Write README.md of an artifact.

    Args:
        settings: fields of ``StreamSettings``, and its ``trained_seconds``.
        metrics: content of ``metrics.json``.
        facts: what else it states.
    """
    from yaml import safe_dump

    front_matter = _front_matter(settings, metrics, facts)
    return _CARD.format(
        **settings,
        front_matter=safe_dump(front_matter, sort_keys=False, allow_unicode=True, width=1000),
        steps=len(settings["sigmas"]),
        picture_ms=1000 * settings["video_look_ahead"] / VIDEO_LATENTS_PER_SECOND,
        sound_ms=1000 * settings["look_ahead"] // MEL_RATE,
        measured=_measured(metrics),
    )


def check_card(folder: Path) -> dict[str, Any]:
    """Return the front matter of an artifact's card, which must name a licence.

    Raises:
        OmniForcingError: if there is none, or it names no licence.
    """
    from yaml import YAMLError, safe_load

    card = folder / CARD
    try:
        _, text, _ = card.read_text(encoding="utf-8").split("---\n", 2)
        found = safe_load(text)
    except (OSError, ValueError, YAMLError) as error:
        raise OmniForcingError(
            "publishing.no-front-matter",
            f"{card} has no front matter for other tools to read ({type(error).__name__}); export "
            "the artifact again",
        ) from error
    if not isinstance(found, dict) or not found.get("license"):
        raise OmniForcingError(
            "publishing.no-licence",
            f"{card} names no licence, without which nobody may use the weights; set "
            "export.licence in the preset and export the artifact again",
        )
    return found


def _front_matter(
    settings: Mapping[str, Any], metrics: Mapping[str, Any], facts: CardFacts
) -> dict[str, Any]:
    """Build the fields of the Hub's model cards, those without a value left out."""
    name = f"omniforcing-{settings['preset']}"
    figures = {**metrics.get("models", {}).get(_MODEL, {}), **metrics.get("speed", {})}
    measured = [
        {"type": metric, "name": metric, "value": value}
        for metric, value in sorted(figures.items())
        if _is_number(value)
    ]
    data = {"type": name, "name": f"Held-out clips of preset {settings['preset']}"}
    results = [{"task": _TASK, "dataset": data, "metrics": measured}]
    named = facts.licence_link is not None
    fields = {
        "library_name": "omniforcing",
        "pipeline_tag": _TASK["type"],
        "license": "other" if named else facts.licence,
        "license_name": facts.licence if named else None,
        "license_link": facts.licence_link,
        "base_model": facts.base_model,
        "tags": ["text-to-audio-video", "streaming", "ltx-2", "diffusers"],
        "widget": [{"text": facts.sample, "output": {"url": SAMPLE}}] if facts.sample else None,
        "model-index": [{"name": name, "results": results}] if measured else None,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> str:
    return f"{value:.3g}" if _is_number(value) else "-"


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Write a Markdown table: a line per metric that is a number in any row, a column per row."""
    names = sorted(
        {name for row in rows.values() for name, value in row.items() if _is_number(value)}
    )
    lines = [["", *rows], ["---"] * (1 + len(rows))]
    lines += [[name, *(_number(row.get(name)) for row in rows.values())] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured(metrics: Mapping[str, Any]) -> str:
    parts = []
    if models := metrics.get("models"):
        parts.append(_table(models))
    if speed := metrics.get("speed"):
        lines = [
            f"- {key}: {_number(speed[key])}" for key in sorted(speed) if _is_number(speed[key])
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "Nothing: it was exported without an evaluation."
