"""Training curves: rows without a value leave no point, and a picture is drawn with or without a
reference.
"""

from pathlib import Path

from PIL import Image

from omniforcing.evaluation.curves import draw_training, read_curves, stage_curves

TABLE = "step,loss_video,loss_audio,sync_margin\n0,1.0,2.0,\n10,0.5,1.5,0.1\n20,0.25,,0.3\n"


def test_only_values_become_points(tmp_path: Path) -> None:
    (tmp_path / "teacher.curves.csv").write_text(TABLE)
    curves = read_curves(tmp_path / "teacher.curves.csv")
    assert curves["sync_margin"] == [(10, 0.1), (20, 0.3)]
    assert curves["loss_audio"] == [(0, 2.0), (10, 1.5)]
    assert "step" not in curves


def test_stages_without_curves_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "teacher.curves.csv").write_text(TABLE)
    (tmp_path / "causal_ode.curves.csv").write_text("step\n")
    assert set(stage_curves(tmp_path, ["teacher", "causal_ode", "self_forcing"])) == {"teacher"}


def test_the_reference_is_seen_in_the_picture(tmp_path: Path) -> None:
    (tmp_path / "teacher.curves.csv").write_text(TABLE)
    stages = stage_curves(tmp_path, ["teacher"])
    alone, over = (
        draw_training(tmp_path / f"{n}.png", stages, r)
        for n, r in (("alone", {}), ("over", stages))
    )
    assert Image.open(alone).size == Image.open(over).size
    assert alone.read_bytes() != over.read_bytes()
