"""docs/reference/errors.md, the one golden file of wording, and the rules that codes follow."""

from pathlib import Path

import pytest

from tools.reference import errors
from tools.reference.__main__ import NOTE, WRITE

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "errors.md"
SITES = errors.sites()


def test_the_page_says_what_the_code_says() -> None:
    expected = NOTE + errors.page().strip() + "\n"
    assert PAGE.read_text(encoding="utf-8") == expected, f"{PAGE.name} is stale; run `{WRITE}`"


def test_every_error_has_a_literal_code_and_a_sentence_of_the_right_form() -> None:
    bad = [
        f"{site.module}:{site.line} {site.code}"
        for site in SITES
        if site.code is None or not errors.CODE.fullmatch(site.code)
    ]
    assert bad == []
    assert len(SITES) > 250, "the reader finds the raise sites"


def test_a_code_belongs_to_a_room_that_raises_it_or_is_shared() -> None:
    rooms: dict[str, set[str]] = {}
    for site in SITES:
        rooms.setdefault(str(site.code), set()).update(site.rooms, errors.SHARED)
    assert [code for code, known in rooms.items() if code.partition(".")[0] not in known] == []


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "src" / "room").mkdir(parents=True)
    return tmp_path


def test_sites_of_subclasses_and_helpers_are_read_as_templates(checkout: Path) -> None:
    (checkout / "src" / "room" / "a.py").write_text(
        "class RoomError(OmniForcingError): pass\n"
        "class Deeper(errors.RoomError): pass\n"
        "def helper(path, error, kind):\n"
        "    return Deeper('room.bad', f'{path.parent} holds {len(kind)}: '\n"
        "                  f'{error!r:.80}; mend it' if path else 'nothing')\n"
        "raise RoomError(computed())\n"
    )
    literal, unnamed = errors.sites(checkout)
    assert (literal.code, literal.module, literal.line) == ("room.bad", "src/room/a.py", 4)
    assert literal.sentences == ("{parent} holds {kind}: {error}; mend it", "nothing")
    assert literal.rooms == {"room", "a"}
    assert (unnamed.code, unnamed.line) == (None, 6)
    (checkout / "src" / "b.py").write_text("raise RoomError('room.bad', 'no')\n")
    assert "room" in errors.sites(checkout)[0].rooms, "the room of the error's class counts too"
    shown = errors.page(checkout)
    assert "### `room.bad`" in shown and "- nothing (`src/room/a.py`)" in shown
