"""Configuration: sections with ranges, read from YAML files and overrides; later ones win.

A section is a dataclass beside the code that it configures (``<room>/config.py``). Each field has
an attribute docstring and each number a range; ``omniforcing.pipeline.config`` joins all sections
and says which files apply. Nothing here knows the project's sections.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from omniforcing.core.errors import OmniForcingError

_LEGAL = "legal"
# What a field takes, by the name of its type.
TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
# No setting of ours comes near; what lies beyond is a slip such as one zero too many, typed twice.
LARGEST = 1e12


class ConfigError(OmniForcingError):
    """Error of a configuration that cannot be used; names the key, the file and the remedy."""


class FieldError(ValueError):
    """Error of a value that its section refuses; ``merge_sources`` turns it into ``ConfigError``.

    Args:
        key: the field, dotted, relative to the section that refuses it.
        fault: the sentence after the key, such as ``is 0; it must be at least 1``.
        missing: whether the value is missing rather than out of range.
    """

    def __init__(self, key: str, fault: str, missing: bool = False) -> None:
        super().__init__(key, fault, missing)
        self.key = key
        self.fault = fault
        self.missing = missing

    def __str__(self) -> str:
        return f"{self.key} {self.fault}"


# --- ranges -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Legal values of a number up to ``LARGEST``; ``above`` and ``below`` are not legal."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            abs(value) <= LARGEST  # false for nan too
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:g} to {self.at_most:g}"
        bounds = (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        )
        return " and ".join(f"{name} {bound:g}" for name, bound in bounds if bound is not None)


@dataclass(frozen=True)
class Choice:
    """Legal values of a word."""

    words: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        return value in self.words

    def __str__(self) -> str:
        return " or ".join([", ".join(self.words[:-1]), self.words[-1]])


def ranged(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Make a dataclass field with a range, which applies to all numbers of a list or a section.

    Args:
        default: a number, None, a list of numbers or a section of numbers.
        at_least: smallest legal value.
        above: lower bound that is not legal itself.
        at_most: largest legal value.
        below: upper bound that is not legal itself.
    """
    return _field(default, Range(at_least, above, at_most, below))


def fraction(default: float) -> Any:
    """Make a dataclass field that holds a share, from 0 to 1."""
    return ranged(default, at_least=0, at_most=1)


def chosen(default: str, words: Iterable[str]) -> Any:
    """Make a dataclass field that holds one of a few words."""
    return _field(default, Choice(tuple(words)))


def _field(default: Any, legal: Range | Choice) -> Any:
    metadata = {_LEGAL: legal}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        return field(default_factory=lambda: dataclasses.replace(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# --- sections -----------------------------------------------------------------------------------


@dataclass
class Section:
    """Base class of the sections of a configuration; checks the range of each field when built.

    A section that must check fields against each other extends ``__post_init__`` and calls
    ``require``.

    Attributes:
        one_line: whether conf/config.yaml has the section on one line.
    """

    one_line: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            legal = f.metadata.get(_LEGAL)
            if legal is None:
                continue
            for key, value in _leaves(f.name, getattr(self, f.name)):
                if value in legal:
                    continue
                rule = str(legal)
                if isinstance(value, float) and not math.isfinite(value):
                    rule = f"finite and {rule}"
                elif not isinstance(value, str) and abs(value) > LARGEST:
                    rule = f"{rule}, and no number may be beyond {LARGEST:g}"
                raise FieldError(key, f"is {value!r}; it must be {rule}")

    def require(self, holds: bool, key: str, rule: str, missing: bool = False) -> None:
        """Refuse the value of a field unless a condition holds.

        Args:
            holds: the condition.
            key: the field, dotted if it is a field of a section of this one.
            rule: what is legal, as the end of a sentence.
            missing: whether the value is missing rather than out of range.

        Raises:
            FieldError: naming key, value and rule.
        """
        if holds:
            return
        value: Any = self
        for name in key.split("."):
            value = getattr(value, name)
        raise FieldError(key, f"is {_plain(value)!r}; {rule}", missing)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a field that has a range; None is always legal."""
    if isinstance(value, Section):
        for f in dataclasses.fields(value):
            yield from _leaves(f"{key}.{f.name}", getattr(value, f.name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(f"{key}[{index}]", item)
    elif value is not None:
        yield key, value


@dataclass(frozen=True)
class Key:
    """A key of a schema, for documents.

    Attributes:
        key: dotted name.
        default: default value; a section for a key that has keys of its own.
        type: type, as the field declares it.
        legal: range or choice in words; "" if any value of the type is legal.
        about: docstring of the field, on one line.
    """

    key: str
    default: Any
    type: str
    legal: str
    about: str

    @property
    def is_section(self) -> bool:
        """Whether the key takes a section, or null instead of one."""
        base = self.type.removesuffix(" | None")
        return base not in TYPES and base != "word" and not base.startswith("list[")

    @property
    def takes(self) -> str:
        """What the key takes, in words, such as ``a number above 0, or null``."""
        base = self.type.removesuffix(" | None")
        item = base.removeprefix("list[").removesuffix("]")
        section = "a section of numbers" if self.legal else "a section"
        words = "" if self.legal and item in ("str", "word") else TYPES.get(item, section)
        each = "" if item == base else "a list, each "
        return f"{each}{words} {self.legal}".strip() + (", or null" if base != self.type else "")


def describe_keys(section: Section, prefix: str = "", legal: str = "") -> Iterator[Key]:
    """Describe every key of a section, each section before its own keys.

    Args:
        section: the defaults.
        prefix: beginning of the dotted names.
        legal: range in words that all keys of the section share; "" if none.
    """
    about, types = field_docstrings(type(section)), get_type_hints(type(section))
    for f in dataclasses.fields(section):
        value, declared = getattr(section, f.name), types[f.name]
        legal_here = legal or str(f.metadata.get(_LEGAL, ""))
        if isinstance(declared, type) and issubclass(declared, Enum):
            legal_here = str(Choice(tuple(word.value for word in declared)))
            type_name = "word"
        else:
            type_name = f.type if isinstance(f.type, str) else inspect.formatannotation(f.type)
        yield Key(prefix + f.name, value, type_name, legal_here, about.get(f.name, ""))
        if isinstance(value, Section):
            yield from describe_keys(value, f"{prefix}{f.name}.", legal_here)


def field_docstrings(schema: type) -> dict[str, str]:
    """Read the attribute docstrings of a section and its bases, by field, each on one line."""
    # Python keeps no docstrings of attributes: read them from the source.
    docstrings: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for named, text in zip(tree.body, tree.body[1:], strict=False):
            if (
                isinstance(named, ast.AnnAssign)
                and isinstance(named.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                docstrings[named.target.id] = " ".join(text.value.value.split())
    return docstrings


# --- places -------------------------------------------------------------------------------------


def project_root() -> Path:
    """Find the folder with conf/config.yaml, upwards from the working folder, then the package.

    Raises:
        ConfigError: if there is none.
    """
    for start in (Path.cwd(), Path(__file__).resolve()):
        for folder in (start, *start.parents):
            if (folder / "conf" / "config.yaml").is_file():
                return folder
    raise ConfigError(
        "config.no-checkout",
        "no conf/config.yaml in this folder or any above it; run from the project's checkout",
    )


# --- values -------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a config or one of its sections to nested dicts of plain values, for json."""
    return {k: _plain(v) for k, v in dataclasses.asdict(config).items()}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one level with dotted keys, each after ``prefix``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def digest(value: Any) -> str:
    """Compute the sha256 of a value or a config section, as json in canonical form."""
    is_section = dataclasses.is_dataclass(value) and not isinstance(value, type)
    plain = to_dict(value) if is_section else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
