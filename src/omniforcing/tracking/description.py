"""What MLflow's pages show of a model: its card, with a sample that plays."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

NOTE = "mlflow.note.content"  # tag in which MLflow's pages look for a logged model's description
LONGEST = 5000  # characters that the registry's tables hold


def page_text(card: str, run: Any, sample: str, picture: str) -> str:
    """Write the description of a model: its card without front matter, after a sample.

    Links are relative, so that they hold wherever MLflow's pages are served.

    Args:
        card: content of the model card.
        run: the MLflow run that logged the model.
        sample: path of a clip among the run's artifacts.
        picture: path of a picture of it there.
    """
    parts = card.split("---\n", 2)
    body = parts[2] if len(parts) == 3 and not parts[0] else card
    title, _, text = body.strip().partition("\n")
    info = run.info
    page = f"#/experiments/{info.experiment_id}/runs/{info.run_id}/artifacts"
    shown = f"get-artifact?path={quote(picture, safe='')}&run_uuid={info.run_id}"
    described = (
        title,
        f"[![Frames over the sound of the sample]({shown})]({page}/{quote(sample)})",
        f"[Play the sample, with sound]({page}/{quote(sample)})",
        text.strip(),
    )
    return shortened("\n\n".join(described), f"\n\n[The rest of the card]({page}/README.md)\n")


def shortened(text: str, rest: str) -> str:
    """Cut a text that is too long for the registry before a line, and say where the rest is."""
    if len(text) <= LONGEST:
        return text
    kept = text[: LONGEST - len(rest)]
    return kept[: kept.rfind("\n")] + rest
