"""Scenarios: streams whose prompt changes at given seconds, read from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from omniforcing.core.config import digest
from omniforcing.core.errors import OmniForcingError, did_you_mean, quoted
from omniforcing.streaming.request import Request, check_moment, check_prompt

Record = TypeVar("Record")
# Types of fields in words.
LONGEST_NAME = 100  # characters; file systems take 255 bytes with a suffix
RESERVED = "interactive"  # `interactive.json` has the figures of all recordings
LEAST_SECONDS = 1  # recordings are judged second by second
_WORDS = {"float": "number", "bool": "true or false", "str": "text"}


@dataclass(frozen=True)
class Update:
    """A change of the prompt.

    Attributes:
        at: second of the stream for which it is asked; it takes effect with the first block that
            begins then or later.
        prompt: what to show and hear from then on.
        rewrite: whether the student's memory is rewritten under it.
    """

    at: float
    prompt: str
    rewrite: bool = False


@dataclass(frozen=True)
class Scenario:
    """A stream and the changes of its prompt.

    Attributes:
        name: of the recording's files.
        prompt: the first prompt.
        seconds: length of the stream.
        seed: of its noise.
        updates: changes, in order.
    """

    name: str
    prompt: str
    seconds: float
    seed: int = 0
    updates: tuple[Update, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name) or self.name.startswith("."):
            raise ValueError("name must be letters, digits, dots, dashes and underscores")
        if len(self.name.encode()) > LONGEST_NAME or self.name.casefold() == RESERVED:
            raise ValueError(
                f"name is {quoted(self.name)}; use another, of {LONGEST_NAME} bytes at most, "
                f"than {RESERVED}, which is the file of the figures"
            )
        Request(self.prompt, self.seconds, self.seed)
        if self.seconds < LEAST_SECONDS:
            raise ValueError(f"seconds is {self.seconds:g}; the least is {LEAST_SECONDS}")
        last = 0.0
        for update in self.updates:
            check_moment(update.at, self.seconds)
            check_prompt(update.prompt)
            if update.at < last:
                raise ValueError("updates must be in the order of their seconds")
            last = update.at

    @property
    def digest(self) -> str:
        """Digest of all of it."""
        return digest(asdict(self))


def read_scenarios(file: Path) -> list[Scenario]:
    """Read scenarios: a list in YAML or JSON, or JSON lines (``.jsonl``).

    Each has the keys of ``Scenario``, each of its ``updates`` those of ``Update``.

    Raises:
        OmniForcingError: naming the file, the scenario, and what is wrong with it.
    """
    content = _content(file)
    if not isinstance(content, list) or not content:
        raise OmniForcingError(
            "pipeline.bad-scenario", f"{file} holds no list of scenarios; give at least one"
        )
    scenarios = [_scenario(file, number, each) for number, each in enumerate(content, 1)]
    names = [scenario.name for scenario in scenarios]
    folded = [name.casefold() for name in names]  # file systems may not tell A from a
    for name in names:
        if folded.count(name.casefold()) > 1:
            raise OmniForcingError(
                "pipeline.bad-scenario",
                f"{file} has two scenarios {name!r}, which would be one recording; rename one",
            )
    return scenarios


def _content(file: Path) -> Any:
    from yaml import YAMLError, safe_load

    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return safe_load(text)
    except (OSError, UnicodeDecodeError, YAMLError, json.JSONDecodeError) as error:
        raise OmniForcingError(
            "file.unreadable",
            f"{file} cannot be read as a list of scenarios ({' '.join(str(error).split())}); "
            f"mend it or name another file",
        ) from error


def _scenario(file: Path, number: int, values: Any) -> Scenario:
    where = f"{file}, scenario {number}"
    if isinstance(values, dict) and isinstance(values.get("name"), str):
        where = f"{file}, scenario {values['name']}"
    try:
        updates = values.get("updates", ()) if isinstance(values, dict) else ()
        if not isinstance(updates, Sequence) or isinstance(updates, str):
            raise ValueError("updates must be a list")
        made = tuple(_record(Update, each) for each in updates)
        return _record(Scenario, {**values, "updates": made} if updates else values)
    except (OmniForcingError, ValueError, TypeError) as error:
        raise OmniForcingError("pipeline.bad-scenario", f"{where}: {error}") from error


def _record(kind: type[Record], values: Any) -> Record:
    """Make a record of a mapping, whose keys and types are checked."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict):
        raise ValueError(f"it must have keys such as {', '.join(known)}")
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"unknown key {name!r}{did_you_mean(str(name), list(known))}")
        wanted = str(known[name].type)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if (
            (wanted == "float" and not number)
            or (wanted == "bool" and not isinstance(value, bool))
            or (wanted == "str" and not isinstance(value, str))
        ):
            raise ValueError(f"{name} is {value!r}, not a {_WORDS[wanted]}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"a key is missing ({error.args[0].split('missing ')[-1]})") from error
