"""The reference pages say what the code says now."""

from pathlib import Path

import pytest

from omniforcing.core.environment import OURS
from omniforcing.core.errors import OmniForcingError
from tools.reference.__main__ import FOLDER, WRITE, check, pages, write

pytestmark = pytest.mark.extended


def test_the_reference_is_not_stale() -> None:
    check(FOLDER)


def test_a_stale_page_is_named_with_the_command_that_renews_it(tmp_path: Path) -> None:
    assert set(write(tmp_path)) == set(pages())
    (tmp_path / "environment.md").write_text("old")
    with pytest.raises(OmniForcingError) as error:
        check(tmp_path)
    assert error.value.code == "tools.stale-reference"
    assert "environment.md" in str(error.value) and WRITE in str(error.value)
    assert write(tmp_path) == ["environment.md"]


def test_every_variable_of_ours_says_what_it_is_for() -> None:
    assert "OMNIFORCING_TOKEN" in OURS
    assert all(len(about) > 10 for about in OURS.values())
