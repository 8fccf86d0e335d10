"""Private APIs of libraries: reviewed for the versions that constraints.txt pins."""

from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/omniforcing"
ROOMS = sorted(path.parent.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("compat.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_private_apis_were_reviewed_for_the_versions_that_are_pinned(room: str) -> None:
    """If this fails: read in the new version what the room's compat.py calls; raise REVIEWED."""
    reviewed = import_module(f"omniforcing.{room.replace('/', '.')}.compat").REVIEWED
    pins = (ROOT / "constraints.txt").read_text().split()
    assert reviewed
    for library, seen in reviewed.items():
        assert f"{library}=={seen}" in pins
        assert version(library).partition("+")[0] == seen


def test_every_room_with_private_apis_is_found() -> None:
    assert {"model", "training"} <= set(ROOMS)


def test_production_code_patches_nothing() -> None:
    for path in [*SOURCE.rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        assert "unittest" not in path.read_text(), path
