"""A whole pipeline beside another checkout's: what a shorter foundation is, and the table."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.pipeline import Run, change, clone_ready, shorten, table, watch
from omniforcing.core.config import project_root
from omniforcing.core.errors import OmniForcingError
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.experiments.variants import variants_of


def test_a_share_shortens_the_training_of_codec_and_teacher_alone(tmp_path: Path) -> None:
    shutil.copytree(project_root() / "conf", tmp_path / "conf")
    whole = load_config([], tmp_path, "pocket")
    shorten(tmp_path / "conf" / "preset" / "pocket.yaml", 0.1)
    part = load_config([], tmp_path, "pocket")
    assert part.codec.video.steps == round(0.1 * whole.codec.video.steps)
    assert part.codec.audio.steps == round(0.1 * whole.codec.audio.steps)
    assert part.codec.vocoder.steps == round(0.1 * whole.codec.vocoder.steps)
    assert part.teacher.optim.steps == round(0.1 * whole.teacher.optim.steps)
    assert part.teacher.sampler == whole.teacher.sampler
    assert (part.self_forcing, part.clips) == (whole.self_forcing, whole.clips)


def test_a_changed_setting_is_that_of_the_preset(tmp_path: Path) -> None:
    shutil.copytree(project_root() / "conf", tmp_path / "conf")
    before = load_config([], tmp_path, "pocket")
    change(tmp_path / "conf" / "preset" / "pocket.yaml", ["trainer.moments=bf16", "seed=3"])
    after = load_config([], tmp_path, "pocket")
    assert (after.trainer.moments, after.seed) == ("bf16", 3)
    assert (after.trainer.threads, after.teacher) == (before.trainer.threads, before.teacher)


def test_a_variant_with_all_its_keys_is_one_of_the_preset(tmp_path: Path) -> None:
    shutil.copytree(project_root() / "conf", tmp_path / "conf")
    preset = tmp_path / "conf" / "preset" / "pocket.yaml"
    change(preset, list(variants_of(load_config([], tmp_path, "pocket"))["adapters-16"].changes))
    adapted = load_config([], tmp_path, "pocket")
    for stage in (adapted.bidirectional_dmd, adapted.causal_ode, adapted.self_forcing):
        assert stage.adapter is not None and stage.adapter.rank == 16 and stage.muon_lr is None


def test_memory_counts_for_the_stage_that_runs() -> None:
    code = "import time; held = b'x' * 50_000_000; print('.', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, "stage", "latents", "--preset"])
    peak: dict[str, int] = {}
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peak, done))
    watcher.start()
    try:
        while not peak.get("latents", 0) > 50e6:
            assert process.poll() is None
    finally:
        done.set()
        process.kill()
        process.wait()
        watcher.join()
    assert peak.keys() == {"latents"} and peak["latents"] < 500e6


def test_the_table_has_both_and_the_first_ones_share() -> None:
    here = Run("aaa", {"clips": 1.0, "all": 3.0}, 2.0, {"clips": 10**9}, {"sync_margin": 0.65})
    there = Run("bbb", {"clips": 2.0, "all": 4.0}, 8.0, {"clips": 2 * 10**9}, {"sync_margin": 0.6})
    lines = table([here, there]).splitlines()
    assert lines[0].split() == ["aaa", "bbb", "ratio"]
    assert [line.split()[-3:] for line in lines[1:]] == [
        ["1.0", "2.0", "0.50"],
        ["3.0", "4.0", "0.75"],
        ["2.0", "8.0", "0.25"],
        ["1000", "2000", "0.50"],
        ["0.650", "0.600", "1.08"],
    ]
    assert "ratio" not in table([here])


def test_a_checkout_without_an_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(OmniForcingError) as error:
        clone_ready(tmp_path, tmp_path / "clone")
    assert str(tmp_path) in str(error.value)
