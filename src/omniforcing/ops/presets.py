"""Running a preset other than the tracked one.

DVC knows one preset, the key ``preset`` of ``conf/config.yaml``, and one ``dvc.lock``. Another preset borrows both while it
runs; its own lock waits in ``.work/locks`` between runs. A journal is written first, so that the next start puts everything
back after a kill.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omniforcing.errors import OmniForcingError
from omniforcing.files import atomic_write, read_json, remove, write_json

_KEY = re.compile(r"^(preset: *)(\S+)", re.MULTILINE)


def tracked_preset(root: Path) -> str:
    """The value of ``preset`` in ``conf/config.yaml``."""
    found = _KEY.search((root / "conf" / "config.yaml").read_text(encoding="utf-8"))
    if not found:
        raise OmniForcingError(f"{root / 'conf' / 'config.yaml'} has no line `preset: NAME`; add one, such as `preset: pocket`")
    return found[2]


def lock_path(root: Path, preset: str) -> Path:
    """Where a preset's lock is while nothing runs: ``dvc.lock`` for the tracked one, else in ``.work/locks``."""
    return root / "dvc.lock" if preset == tracked_preset(root) else root / ".work" / "locks" / f"{preset}.lock"


def set_preset(root: Path, name: str) -> None:
    """Make ``name`` the value of ``preset`` in ``conf/config.yaml``."""
    # Only the one key is touched: edits made to the file meanwhile survive.
    path = root / "conf" / "config.yaml"
    text = path.read_text(encoding="utf-8")
    atomic_write(path, _KEY.sub(lambda found: found[1] + name, text, count=1))


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        atomic_write(target, source.read_bytes())
    else:
        remove(target)


def restore_preset(root: Path) -> None:
    """Put the tracked preset and its lock back, and keep the borrower's lock; does nothing when nothing is borrowed."""
    locks, lock = root / ".work" / "locks", root / "dvc.lock"
    journal = locks / "borrowed.json"
    if not journal.is_file():
        return
    borrowed = read_json(journal)
    tracked = locks / f"{borrowed['tracked']}.lock"
    if tracked_preset(root) == borrowed["running"]:
        _copy(lock, locks / f"{borrowed['running']}.lock")
        set_preset(root, borrowed["tracked"])
    _copy(tracked, lock)
    remove(journal)


@contextmanager
def using_preset(root: Path, preset: str) -> Iterator[None]:
    """Let DVC run ``preset`` while the body runs, then restore key and lock."""
    restore_preset(root)
    tracked = tracked_preset(root)
    if preset == tracked:
        yield
        return
    locks, lock = root / ".work" / "locks", root / "dvc.lock"
    locks.mkdir(parents=True, exist_ok=True)
    _copy(lock, locks / f"{tracked}.lock")
    write_json(locks / "borrowed.json", {"tracked": tracked, "running": preset})
    try:
        _copy(locks / f"{preset}.lock", lock)
        set_preset(root, preset)
        yield
    finally:
        restore_preset(root)
