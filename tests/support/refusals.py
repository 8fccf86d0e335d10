"""How a test checks what is refused: the error's code and the facts it names, never its wording."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from omniforcing.core.errors import OmniForcingError


@contextmanager
def refuses(code: str, *facts: object) -> Iterator[None]:
    """Expect the block to raise an error of ours with this code, on one line that names each fact.

    Args:
        code: ``room.what-is-wrong``, see docs/reference/errors.md.
        facts: what the sentence must name, such as a file, a value or the nearest known key.
    """
    with pytest.raises(OmniForcingError) as caught:
        yield
    check(caught.value.code, str(caught.value), code, *facts)


def check(found: str, sentence: str, code: str, *facts: object) -> None:
    """Compare an error's code, and look for the facts in its sentence."""
    assert found == code, f"{found}: {sentence}"
    assert sentence and "\n" not in sentence, sentence
    missing = [fact for fact in map(str, facts) if fact not in sentence]
    assert not missing, f"{missing} not in: {sentence}"


def refused(stderr: str, code: str, *facts: object) -> None:
    """Expect a command's stderr to end with ``error[code]: sentence``, without a traceback."""
    assert "Traceback" not in stderr, stderr
    last = stderr.strip().splitlines()[-1]
    found, separator, sentence = last.removeprefix("error[").partition("]: ")
    assert last.startswith("error[") and separator, stderr
    check(found, sentence, code, *facts)
