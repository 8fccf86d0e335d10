"""What an ablation leaves behind."""

import re
from pathlib import Path
from typing import Any

from omniforcing.core.files import read_json
from omniforcing.evaluation.ablation import write_ablation

FIGURES: dict[str, Any] = {
    "sync_margin": 0.5,
    "sync_margin_error": 0.02,
    "frechet_video": 0.1,
    "frechet_audio": 0.2,
    "clips": 4,
    "sync_recall": 1,
}
DRIFT: dict[str, Any] = {
    "drift_margin": 0.4,
    "drift": {"thirds": {"margin": [0.6, 0.5, 0.4], "error": [0.1, 0.2, 0.3]}},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "without-II": {"about": "<none> of it", "overrides": ["self_forcing.init=bidirectional_dmd"]}
}
MEASURED: dict[str, Any] = {"preset": "test", "git_commit": "c0ffee" * 5, "evaluation": "beef" * 16}


def test_an_ablation_leaves_a_table_a_plot_and_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "ablation"
    models = {
        "real": FIGURES,
        "baseline": FIGURES | DRIFT,
        "without-II": FIGURES | DRIFT | {"sync_margin": None},
    }
    for _ in range(2):
        write_ablation(folder, models, VARIANTS, {**MEASURED, "seeds": 2})
    assert {path.name for path in folder.iterdir()} == {
        "ablation.json",
        "ablation.png",
        "index.html",
    }
    found = read_json(folder / "ablation.json")
    assert found["rows"]["baseline"]["drift_margin_error"] == 0.3
    assert "drift" not in found["rows"]["baseline"] and "drift_margin" not in found["rows"]["real"]
    assert found["variants"] == VARIANTS
    page = (folder / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == {
        "ablation.png",
        "../evaluation/index.html",
    }
    assert found["settings"]["evaluation"] == MEASURED["evaluation"]
    assert "<code>c0ffeec0ffee</code>" in page and "<code>beefbeefbeef</code>" in page
    assert "test-without-II" in page and "<none>" not in page


def test_another_world_is_compared_by_distance_alone(tmp_path: Path) -> None:
    models = {"real": {"frechet_video": 0.0, "frechet_audio": 0.0, "clips": 4}}
    write_ablation(tmp_path / "ablation", models, {}, MEASURED)
    assert "sync margin" not in (tmp_path / "ablation" / "index.html").read_text()
