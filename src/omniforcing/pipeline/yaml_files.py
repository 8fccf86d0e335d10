"""YAML of ours as two readers see it: OmegaConf (YAML 1.1) for stages, ruamel (1.2) for DVC.

DVC decides by its own reading of a preset whether a stage runs again, and records it in
``dvc.lock``. A value that a stage reads differently would be recorded as what it never was, so it
is refused, and with it every value that is converted to the type of its key. Sources are merged
here too, into one configuration.
"""

from __future__ import annotations

import copy
import datetime
import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from omniforcing.core.config import (
    TYPES,
    ConfigError,
    FieldError,
    Section,
    describe_keys,
)
from omniforcing.core.errors import did_you_mean

S = TypeVar("S", bound=Section)


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: if it is not YAML, or a value of it reads differently to DVC.
    """
    try:
        ours, theirs = _parse(path.read_text(encoding="utf-8"))
    except Exception as error:  # YAML errors come in many classes; all are the user's file
        raise _unreadable(path, error) from error
    _require_mapping(path, ours)
    _compare(ours, theirs, "", str(path))
    return copy.deepcopy(ours)


def read_names(path: Path) -> dict[Any, Any]:
    """Read a YAML file for the names in it, by one reader and fast.

    Raises:
        ConfigError: if it is not YAML that holds a mapping.
    """
    import yaml

    try:
        # libyaml's reader, which takes a tenth of the time, is in most builds of PyYAML.
        found = yaml.load(
            path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        )
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    named = {} if found is None else found
    _require_mapping(path, named)
    return named


def _unreadable(path: Path, error: Exception) -> ConfigError:
    fault = " ".join(str(error).split())
    return ConfigError("config.not-yaml", f"{path} is not readable YAML: {fault}")


def _require_mapping(path: Path, content: object) -> None:
    if not isinstance(content, dict):
        raise ConfigError("config.not-yaml", f"{path} holds no mapping; write `key: value` lines")


@lru_cache
def _parse(text: str) -> tuple[Any, Any]:
    """Read YAML as a stage and as DVC do; a process may ask for the same files many times."""
    from omegaconf import OmegaConf
    from ruamel.yaml import YAML

    ours = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    return ours, YAML(typ="safe").load(text) or {}


def read_overrides(items: Sequence[str]) -> Any:
    """Read ``key.subkey=value`` words of a command line, each value as YAML.

    Raises:
        ConfigError: if a word has another form, or its value reads differently to DVC.
    """
    from omegaconf import OmegaConf
    from ruamel.yaml import YAML

    for item in items:
        key, separator, text = item.partition("=")
        if item.startswith("-") or not separator:
            raise ConfigError(
                "config.bad-override", f"override {item!r} is not of the form key.subkey=value"
            )
        try:
            container = OmegaConf.to_container(
                OmegaConf.from_dotlist([f"value={text}"]), resolve=False
            )
            theirs = YAML(typ="safe").load(text)
        except Exception as error:  # YAML errors come in many classes; all are the user's word
            fault = " ".join(str(error).split())
            raise ConfigError(
                "config.bad-override", f"the value of override {item!r} is not YAML: {fault}"
            ) from error
        ours = container["value"]  # type: ignore[call-overload, index]
        _compare(ours, theirs, key, "the command line")
        # ` #` begins a comment in YAML: without this, a folder `a #1` would be the folder `a`.
        plain = text.strip()
        if isinstance(ours, str) and ours != plain and plain[:1] not in ("'", '"'):
            raise ConfigError(
                "config.bad-override",
                f"override {item!r} reads as {ours!r} in YAML; "
                f"to mean all of it, quote it twice: {_on_command_line(key, plain)}",
            )
    return OmegaConf.from_dotlist(list(items))


def merge_sources(schema: S, sources: Sequence[tuple[Any, str]]) -> S:
    """Apply sources to a schema's defaults, later ones over earlier ones, and check the result.

    Args:
        schema: the defaults.
        sources: mappings, each with the name that errors give it.

    Raises:
        ConfigError: for an unknown key (naming the nearest), a wrong type or an illegal value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    merged = OmegaConf.structured(schema)
    where = ""
    try:
        for source, name in sources:
            where = name
            merged = OmegaConf.merge(merged, source)
        where = "the configuration"
        _check_sections(merged, "")
        made: S = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except ConfigKeyError as error:
        key = str(error.full_key or error.key)
        hint = did_you_mean(key, [known.key for known in describe_keys(schema)])
        raise ConfigError("config.unknown-key", f"unknown key {key!r} in {where}{hint}") from error
    except OmegaConfBaseException as error:
        fault = str(error).splitlines()[0]
        told = _wrong_type(schema, source, str(getattr(error, "full_key", None) or ""), fault)
        raise ConfigError("config.wrong-type", f"{where}: {told}") from error
    return made


def _wrong_type(schema: Section, source: Any, key: str, fault: str) -> str:
    """Say which key of a source has a value of another type, and what the key takes."""
    from omegaconf import OmegaConf

    given, known = OmegaConf.create(source), {key.key: key for key in describe_keys(schema)}
    if not key:
        # omegaconf names no key where a section should be; parents come before their children.
        sections = (name for name, each in known.items() if each.is_section)
        for name in sections:
            value = OmegaConf.select(given, name, default=OmegaConf.create())
            if not OmegaConf.is_dict(value) and value is not known[name].default:
                key = name
                break
    if key not in known:
        return f"{key}: {fault}" if key else fault
    value = OmegaConf.select(given, key)
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if isinstance(known[key].default, Section):
        first = next(name for name in known if name.startswith(f"{key}."))
        return f"{key} is {value!r}; it is a section: set its keys, such as {first}"
    return f"{key} is {value!r}; it must be {known[key].takes}"


def _check_sections(node: Any, key: str) -> None:
    """Build every section of a merged configuration, innermost first.

    A section knows only its own keys: here a refused one gets its whole dotted name.
    """
    from omegaconf import DictConfig, ListConfig, OmegaConf

    if isinstance(node, DictConfig):
        for name, child in node.items():
            _check_sections(child, f"{key}.{name!s}" if key else str(name))
    elif isinstance(node, ListConfig):
        for index, child in enumerate(node):
            _check_sections(child, f"{key}[{index}]")
    else:
        return
    try:
        OmegaConf.to_object(node)
    except FieldError as error:
        full_key = f"{key}.{error.key}" if key else error.key
        if error.missing:
            raise ConfigError("config.missing-value", f"{full_key} {error.fault}") from None
        raise ConfigError("config.out-of-range", f"{full_key} {error.fault}") from None


def check_types(given: Any, made: Any, where: str, key: str = "") -> None:
    """Refuse values that had to be converted to the type of their key.

    OmegaConf turns the text ``"16"`` into a number and the number ``1_000`` into the text
    ``1000``, while DVC records what the file says.

    Args:
        given: plain values of one source.
        made: plain values of the configuration that was made of all sources.
        where: name of the source.
        key: dotted name of these values.

    Raises:
        ConfigError: naming key, value and the way to write it.
    """
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        for name in given.keys() & made.keys():
            check_types(given[name], made[name], where, f"{key}.{name}" if key else str(name))
    elif isinstance(given, list) and isinstance(made, list):
        for index, (one, other) in enumerate(zip(given, made, strict=False)):
            check_types(one, other, where, f"{key}[{index}]")
    elif given is not None and made is not None and type(given) is not type(made):
        if type(given) is int and type(made) is float:
            return
        if isinstance(made, str):
            wanted = f"text; quote what you mean, as in {_form(str(given), key, where)}"
        elif isinstance(given, str):
            wanted = (
                f"{TYPES[type(made).__name__]}; write it without quotes, as in {made!r}".lower()
            )
        else:
            wanted = TYPES.get(type(made).__name__, "another type")
        raise ConfigError("config.wrong-type", f"{where}: {key} is {given!r}; it must be {wanted}")


def _compare(ours: Any, theirs: Any, key: str, where: str) -> None:
    """Refuse the first value that two readers see differently.

    Args:
        ours: what a stage reads.
        theirs: what DVC reads.
        key: dotted name of the value.
        where: the file, or the command line.

    Raises:
        ConfigError: naming key, both readings and the ways to write either.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        # Names such as `no` and `010` are read in two ways like values.
        for name, other in zip(sorted(map(repr, ours)), sorted(map(repr, theirs)), strict=False):
            if name != other:
                raise ConfigError(
                    "config.ambiguous-value",
                    f"{where}: a name in {key or 'it'} reads as {name} in YAML 1.1, by which "
                    f"stages run, and as {other} in YAML 1.2, by which DVC compares; quote it",
                )
        for name in ours:
            _compare(ours[name], theirs[name], f"{key}.{name}" if key else str(name), where)
        return
    if isinstance(ours, list) and isinstance(theirs, list):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            _compare(one, other, f"{key}[{index}]", where)
        return
    if isinstance(ours, str) and "${" in ours:
        raise ConfigError(
            "config.ambiguous-value",
            f"{where}: {key} is {ours!r}; DVC does not replace ${{...}}, so write the value itself",
        )
    if type(ours) is type(theirs) and repr(ours) == repr(theirs):
        return
    forms = dict.fromkeys(_form(value, key, where) for value in (ours, theirs))
    seen = f"the date {theirs}" if isinstance(theirs, datetime.date) else repr(theirs)
    raise ConfigError(
        "config.ambiguous-value",
        f"{where}: {key} reads as {ours!r} in YAML 1.1, by which stages run, and as {seen} "
        f"in YAML 1.2, by which DVC compares; write {' or '.join(forms)}",
    )


def _form(value: Any, key: str, where: str) -> str:
    """Write a value so that both readers see the same."""
    if isinstance(value, str | datetime.date):
        text = str(value)
        return _on_command_line(key, text) if where == "the command line" else json.dumps(text)
    return json.dumps(value)


def _on_command_line(key: str, text: str) -> str:
    return f"{key}='{json.dumps(text, ensure_ascii=False)}'"
