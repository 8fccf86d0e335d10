"""Borrowing the tracked key and lock for another preset, and giving them back after a kill at any point."""

from pathlib import Path

import pytest

from omniforcing.errors import OmniForcingError
from omniforcing.files import atomic_write, write_json
from omniforcing.ops import presets
from omniforcing.ops.presets import restore_preset, tracked_preset, using_preset

TEXT = "# all knobs\npreset: pocket    # which\nseed: 0\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    atomic_write(tmp_path / "conf" / "config.yaml", TEXT)
    atomic_write(tmp_path / "dvc.lock", "pocket's lock")
    return tmp_path


def test_a_borrowed_preset_is_given_back_with_its_own_lock_kept(root: Path) -> None:
    with using_preset(root, "smoke"):
        assert tracked_preset(root) == "smoke"
        assert not (root / "dvc.lock").exists()
        (root / "dvc.lock").write_text("smoke's lock")
    assert (root / "conf" / "config.yaml").read_text() == TEXT
    assert (root / "dvc.lock").read_text() == "pocket's lock"
    with using_preset(root, "smoke"):
        assert (root / "dvc.lock").read_text() == "smoke's lock"
    assert (root / "dvc.lock").read_text() == "pocket's lock"


def test_the_tracked_preset_borrows_nothing(root: Path) -> None:
    with using_preset(root, "pocket"):
        (root / "dvc.lock").write_text("newer")
    assert (root / "dvc.lock").read_text() == "newer"
    assert not (root / ".work").exists()


def test_edits_made_meanwhile_survive(root: Path) -> None:
    config = root / "conf" / "config.yaml"
    with using_preset(root, "smoke"):
        config.write_text(config.read_text().replace("seed: 0", "seed: 7"))
    assert config.read_text() == TEXT.replace("seed: 0", "seed: 7")


class KilledError(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


@pytest.mark.parametrize("after", range(1, 12))
def test_killed_after_any_write_the_next_start_heals(root: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    atomic_write(root / ".work" / "locks" / "smoke.lock", "smoke's lock")
    writes = 0

    def counted(real):  # type: ignore[no-untyped-def]
        def call(*arguments: object) -> None:
            nonlocal writes
            if writes >= after:
                raise KilledError
            writes += 1
            real(*arguments)

        return call

    for name, real in (("atomic_write", atomic_write), ("write_json", write_json), ("remove", presets.remove)):
        monkeypatch.setattr(presets, name, counted(real))
    try:
        with using_preset(root, "smoke"):
            pass
    except KilledError:
        pass
    monkeypatch.undo()
    restore_preset(root)
    assert (root / "conf" / "config.yaml").read_text() == TEXT
    assert (root / "dvc.lock").read_text() == "pocket's lock"
    assert (root / ".work" / "locks" / "smoke.lock").read_text() == "smoke's lock"


def test_a_config_without_the_key_is_one_sentence(root: Path) -> None:
    (root / "conf" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(OmniForcingError, match="has no line `preset: NAME`"):
        tracked_preset(root)
