"""The page's files as they are served: what they may load, and whether colours can be read."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from benchmarks.page import PatchEngine
from omniforcing.serving.app import build_app, read_page
from omniforcing.serving.protocol.messages import Limits
from omniforcing.serving.service import Service

CSS = read_page()["page.css"]
SCHEMES = {
    name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for name, block in zip(
        ("light", "dark"), re.findall(r":root \{(.*?)\}", CSS, re.S), strict=False
    )
}
# Least contrast of WCAG 2.2, level AA: 4.5 for text (1.4.3), 3 for what shows a control (1.4.11).
TEXT, CONTROL = 4.5, 3.0
PAIRS = [
    *(
        (ink, ground, TEXT)
        for ink in ("text", "dim", "accent", "error")
        for ground in ("page", "card")
    ),
    *((ink, "quiet", TEXT) for ink in ("text", "dim", "accent")),
    ("on-accent", "accent", TEXT),
    *(
        (line, ground, CONTROL)
        for line in ("edge", "accent")
        for ground in ("page", "card", "quiet")
    ),
]


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``, as WCAG defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("ink", "ground", "least"), PAIRS)
def test_colours_can_be_told_apart(scheme: str, ink: str, ground: str, least: float) -> None:
    low, high = sorted(luminance(SCHEMES[scheme][name]) for name in (ink, ground))
    assert (high + 0.05) / (low + 0.05) >= least


def test_both_schemes_have_every_colour() -> None:
    assert (
        SCHEMES["light"].keys()
        == SCHEMES["dark"].keys()
        >= {name for pair in PAIRS for name in pair[:2]}
    )


def test_the_page_loads_its_own_files_alone() -> None:
    client = TestClient(build_app(Service(PatchEngine(64, 64), Limits(), [])))  # type: ignore[arg-type]
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'; style-src 'self'" in policy and "unsafe" not in policy
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    imported = {
        name for text in read_page().values() for name in re.findall(r'from "\./(.+?)"', text)
    }
    for name in [name for name in named if not name.startswith("data:")] + [
        f"page/{n}" for n in imported
    ]:
        answer = client.get(f"/{name}")
        assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-cache"
    assert client.get("/page/main.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert client.get("/page/other.js").status_code == 404
    for name, text in read_page().items():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert len(text.splitlines()) <= 400, name
