"""The configuration's mechanism: ranges, sources over each other, mistakes named by their key."""

import pickle
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from omniforcing.core.config import (
    ConfigError,
    FieldError,
    Section,
    chosen,
    describe_keys,
    digest,
    field_docstrings,
    flatten,
    fraction,
    project_root,
    ranged,
    to_dict,
)
from omniforcing.pipeline.yaml_files import merge_sources

ROOT = Path(__file__).parents[2]


class Colour(Enum):
    red = "red"
    blue = "blue"


@dataclass
class Rates(Section):
    """Two rates."""

    left: float = ranged(1.0, at_least=0)
    """Of the left one."""
    right: float = ranged(1.0, at_least=0)
    """Of the right one."""


@dataclass
class Ball(Section):
    """One ball."""

    radius: int = ranged(3, at_least=1)
    """Pixels from its middle
    to its edge."""
    weight: float = ranged(0.5, above=0, below=10)
    colour: Colour = Colour.red
    """What it looks like."""
    kind: str = chosen("soft", ("soft", "hard", "hollow"))
    """What it is made of."""
    bounce: float = fraction(0.9)
    """Share of the speed that a bounce keeps."""
    betas: list[float] = ranged([0.9, 0.99], at_least=0, below=1)
    rates: Rates = ranged(Rates(), above=0)
    """Stricter than a rate alone."""
    spin: Rates | None = ranged(None, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.radius < 100 or self.kind == "soft", "radius", "hard balls are below 100")


@dataclass
class World(Section):
    """Balls."""

    ball: Ball = field(default_factory=Ball)
    """The one."""
    others: list[Ball] = field(default_factory=lambda: [Ball(), Ball()])
    name: str = "pocket"


def load(*overrides: str) -> World:
    from omegaconf import OmegaConf

    return merge_sources(World(), [(OmegaConf.from_dotlist(list(overrides)), "the command line")])


def test_later_sources_win_over_earlier_ones_and_over_defaults() -> None:
    world = merge_sources(
        World(), [({"ball": {"radius": 5, "weight": 2}}, "a"), ({"ball": {"radius": 7}}, "b")]
    )
    assert (world.ball.radius, world.ball.weight, world.ball.bounce) == (7, 2.0, 0.9)


@pytest.mark.parametrize(
    ("override", "code", "facts"),
    [
        ("ball.radius=0", "config.out-of-range", ("ball.radius", "0", "at least 1")),
        ("ball.weight=0", "config.out-of-range", ("ball.weight", "0", "above 0 and below 10")),
        ("ball.weight=10", "config.out-of-range", ("ball.weight", "10", "below 10")),
        ("ball.weight=.nan", "config.out-of-range", ("ball.weight", "nan")),
        ("ball.weight=1e400", "config.out-of-range", ("ball.weight", "inf", "finite")),
        ("ball.radius=" + "9" * 400, "config.out-of-range", ("ball.radius", "1e+12")),
        ("ball.rates.left=1e13", "config.out-of-range", ("ball.rates.left", "1e+12")),
        ("ball.rates.left=.inf", "config.out-of-range", ("ball.rates.left", "inf", "finite")),
        ("ball.bounce=1.5", "config.out-of-range", ("ball.bounce", "1.5", "from 0 to 1")),
        ("ball.kind=wet", "config.out-of-range", ("ball.kind", "wet", "soft, hard or hollow")),
        ("ball.betas=[0.5,1]", "config.out-of-range", ("ball.betas[1]", "1.0", "below 1")),
        ("ball.rates.left=-1", "config.out-of-range", ("ball.rates.left", "-1", "at least 0")),
        ("ball.rates.left=0", "config.out-of-range", ("ball.rates.left", "0", "above 0")),
        ("ball.spin={left: 0, right: 1}", "config.out-of-range", ("ball.spin.left", "0")),
        ("others=[{radius: 1},{radius: 0}]", "config.out-of-range", ("others[1].radius", "0")),
        ("ball={radius: 100, kind: hard}", "config.out-of-range", ("ball.radius", "100")),
        ("ball.colour=green", "config.wrong-type", ("ball.colour", "green", "red", "blue")),
        ("ball.radius=many", "config.wrong-type", ("'many'", "a whole number at least 1")),
        ("ball.radius=2.5", "config.wrong-type", ("the command line: ball.radius is 2.5",)),
        ("ball.weight=heavy", "config.wrong-type", ("a number above 0 and below 10",)),
        ("ball.weight=", "config.wrong-type", ("ball.weight is None", "a number")),
        ("ball.betas=3", "config.wrong-type", ("ball.betas is 3", "a list, each a number")),
        ("ball.spin=3", "config.wrong-type", ("ball.spin is 3", "a section", "or null")),
        ("ball.spin=left", "config.wrong-type", ("ball.spin is 'left'", "a section")),
        ("ball=3", "config.wrong-type", ("ball is 3", "its keys, such as ball.radius")),
        ("ball=", "config.wrong-type", ("ball is None", "its keys")),
        ("ball.rates=[1]", "config.wrong-type", ("ball.rates is [1]", "ball.rates.left")),
        ("ball.raduis=2", "config.unknown-key", ("ball.raduis", "'ball.radius'")),
        ("bal.radius=2", "config.unknown-key", ("the command line", "'ball")),
    ],
)
def test_a_mistake_is_one_sentence_that_names_key_value_and_what_is_legal(
    override: str, code: str, facts: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_a_section_made_in_code_is_checked_too_and_its_error_can_be_sent() -> None:
    with pytest.raises(FieldError) as caught:
        Ball(weight=-1)
    sent = pickle.loads(pickle.dumps(caught.value))
    assert (sent.key, str(sent)) == ("weight", str(caught.value))


def test_defaults_are_not_shared() -> None:
    Ball().betas.append(0.1)
    Ball().rates.left = 9.0
    assert Ball().betas == [0.9, 0.99]
    assert Ball().rates.left == 1.0


def test_keys_are_described_by_type_range_and_docstring() -> None:
    keys = {key.key: key for key in describe_keys(World())}
    assert keys["ball.radius"].about == "Pixels from its middle to its edge."
    assert (keys["ball.radius"].type, keys["ball.radius"].legal) == ("int", "at least 1")
    assert keys["ball.rates.left"].legal == "above 0"
    assert keys["ball.colour"].legal == "red or blue"
    assert keys["ball.weight"].about == ""
    assert field_docstrings(Rates) == {"left": "Of the left one.", "right": "Of the right one."}


def test_digest_depends_on_values_alone() -> None:
    plain: dict[str, Any] = to_dict(Ball())
    assert plain["colour"] == "red"
    assert digest(Ball()) == digest(Ball()) == digest(plain)
    assert digest(Ball()) != digest(Ball(radius=4))
    assert flatten(plain)["rates.left"] == 1.0


def test_the_project_is_found_from_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "src")
    assert project_root() == ROOT
