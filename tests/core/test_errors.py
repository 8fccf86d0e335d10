"""Errors keep their code and attributes on the way between processes and to the user."""

import copy
import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from omniforcing.cli import main
from omniforcing.core.console import explain, run_command, visible
from omniforcing.core.errors import OmniForcingError
from omniforcing.media.reading.tracks import Rejected
from omniforcing.model.weights.tensor_file import WeightsError
from omniforcing.serving.service import Refused
from tests.support.refusals import refused

ERRORS = [
    OmniForcingError("file.missing", "a.mp4 is missing; make it"),
    WeightsError("weights.truncated", "model.safetensors is truncated"),
    Rejected("media.no-audio-track", "the file holds video"),
    Refused("serving.busy", "all sessions are taken", 503, "busy"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("through", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy])
def test_an_error_survives_pickling(
    error: OmniForcingError, through: Callable[[OmniForcingError], OmniForcingError]
) -> None:
    error.add_note("on worker 3")
    again = through(error)
    assert type(again) is type(error)
    assert (str(again), again.args) == (str(error), error.args)
    assert vars(again) == vars(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_rays_serialisation(error: OmniForcingError) -> None:
    """Ray sends a task's error as its cause within an error of both classes."""
    from ray.exceptions import RayError, RayTaskError

    task = RayTaskError("make", "a traceback", error).as_instanceof_cause()
    again = RayError.from_bytes(task.to_bytes())
    assert isinstance(again, type(error))
    assert vars(getattr(again, "cause")) == vars(error)  # noqa: B009


def test_a_reject_reason_is_the_words_of_its_code() -> None:
    error = Rejected("media.not-a-readable-video", "no frame can be decoded")
    assert error.reason == "not a readable video"
    assert str(error) == "not a readable video: no frame can be decoded"


def test_an_error_survives_json() -> None:
    error = WeightsError("weights.pickle", "a.pt is a pickle")
    again = OmniForcingError.from_json(json.loads(json.dumps(error.as_json())))
    assert (again.code, str(again)) == ("weights.pickle", "a.pt is a pickle")


def test_a_command_ends_with_one_line_that_begins_with_the_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise WeightsError("weights.truncated", "a.safetensors is damaged:\n  no header; copy it")

    assert run_command(fail) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    refused(shown, "weights.truncated", "a.safetensors is damaged: no header; copy it")


def test_a_full_disk_is_explained_and_other_faults_are_not() -> None:
    full = explain(OSError(errno.ENOSPC, "No space left on device", "x.tar"))
    assert full is not None and full.code == "disk.full" and "x.tar" in str(full)
    assert explain(OSError(errno.EACCES, "Permission denied")) is None
    assert explain(None) is None


def test_names_and_texts_of_files_tell_a_terminal_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Colours, titles and the like are written as what they are; tables keep their lines."""
    name = "red\x1b[31m\x9b2J.mp4"
    (tmp_path / name).write_bytes(b"no video")
    for words in (["inspect", str(tmp_path / name)], ["measure", str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
    shown = capsys.readouterr()
    assert r"red\x1b[31m\x9b2J.mp4" in shown.err and not {"\x1b", "\x9b"} & {*shown.err}
    assert visible("a\tb\nc\x07\x7f") == "a\\x09b\nc\\x07\\x7f"
