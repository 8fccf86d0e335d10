"""Private APIs of libraries: reviewed for the versions that constraints.txt pins."""

from pathlib import Path

import pytest

from omniforcing.model import compat as of_model

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("library", "version"), of_model.REVIEWED.items())
def test_private_apis_were_reviewed_for_the_pinned_version(library: str, version: str) -> None:
    """If this fails: read what the functions in ``compat.py`` call in the new version, then raise ``REVIEWED``."""
    assert f"{library}=={version}" in (ROOT / "constraints.txt").read_text().split()
