"""YAML as two readers see it: what they read differently, and what was converted, is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import parse_yaml

from omniforcing.cli.options import split_overrides
from omniforcing.core.config import ConfigError, to_dict
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.declaration import tracked_preset
from omniforcing.pipeline.generate import refuse_old_lock
from omniforcing.pipeline.yaml_files import read_yaml
from tests.support.refusals import refuses
from tests.support.toy_project import write_project

ROOT = Path(__file__).parents[2]
# Scalars that YAML 1.1 and 1.2 read differently, or that look as if they might be.
SCALARS = (
    *("no", "No", "NO", "off", "on", "yes", "y", "n", "true", "True", "TRUE", "false", "null", "~"),
    *("010", "0o10", "08", "0x1f", "0b11", "1_000", "00", "1__0", "0xFFg", "+1", "-0", "1.5_0"),
    *("1e-3", "1E3", "1.0e-3", "1.e3", ".5", ".5e3", ".5e+3", "0.10", "0.0", ".inf", "-.Inf"),
    *("12:30", "-1:30", "12:30:45.5", "190:20:30", "2026-01-01", "2026-01-01T00:00:00Z", "1-2-3"),
    *(".nan", '"no"', "'010'", "no-one", "10:5x"),
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A project whose configuration may be spoilt."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    return tmp_path


@pytest.mark.parametrize("scalar", SCALARS)
def test_a_value_is_read_as_dvc_reads_it_or_refused(tmp_path: Path, scalar: str) -> None:

    text = f"export: {{prompt: {scalar}}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    theirs: Any = parse_yaml(text, "mine.yaml")["export"]["prompt"]
    try:
        read: Any = read_yaml(tmp_path / "mine.yaml")
    except ConfigError as error:
        assert error.code == "config.ambiguous-value"
        assert "export.prompt" in str(error) and "mine.yaml" in str(error)
        return
    ours = read["export"]["prompt"]
    assert (type(ours), repr(ours)) == (type(theirs), repr(theirs))


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("causal_decoder.recompute=no", ("False", "'no'", "write false")),
        ("export.prompt=off", ("False", "'off'", "export.prompt='\"off\"'")),
        ("clips.count=010", ("clips.count", "write 8 or 10")),
        ("clips.count=12:30", ("clips.count", "750", "'12:30'")),
        ("export.prompt=2026-01-01", ("the date 2026-01-01", "export.prompt='\"2026-01-01\"'")),
        ("student.sigmas=[1.0, 010]", ("student.sigmas[1]",)),
        ("clips={no: 1}", ("a name in clips", "False")),
        ("seed=${clips.count}", ("${clips.count}", "the value itself")),
    ],
)
def test_a_word_of_the_command_line_that_is_read_in_two_ways_is_refused(
    override: str, facts: tuple[str, ...]
) -> None:
    with refuses("config.ambiguous-value", "the command line", *facts):
        load_config([override], ROOT)


@pytest.mark.parametrize("file", ["preset/smoke", "cluster/ray", "config"])
def test_presets_cluster_files_and_the_schema_are_read_so(copy: Path, file: str) -> None:
    path = copy / "conf" / f"{file}.yaml"
    line = "jobs: 010\n" if file.startswith("cluster") else "seed: 010\n"
    kept = [old for old in path.read_text().splitlines() if not old.startswith(line[:4])]
    path.write_text("\n".join(kept) + f"\n{line}")
    with refuses("config.ambiguous-value", f"{file}.yaml", line[:4], "8 or 10"):
        load_config(["cluster=ray"], copy, "smoke")


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("export.prompt=1_000", ("export.prompt", "1000", "text")),
        ("export.registered_model=true", ("export.registered_model", "True", "text")),
        ('codec.report_clips="16"', ("codec.report_clips", "'16'", "without quotes")),
        ('teacher.optim.betas=["0.5", 0.9]', ("teacher.optim.betas[0]", "'0.5'")),
        ("causal_decoder.recompute=0", ("causal_decoder.recompute", "0", "true or false")),
        ("causal_decoder.recompute='no'", ("causal_decoder.recompute", "'no'", "true or false")),
        ("codec.report_clips=true", ("codec.report_clips", "True")),
    ],
)
def test_a_value_that_would_be_converted_is_refused(override: str, facts: tuple[str, ...]) -> None:
    with refuses("config.wrong-type", *facts):
        load_config([override], ROOT)


def test_quoted_and_exact_values_pass() -> None:
    words = ['export.prompt="no"', "clips.duets=1", "clips.folder=it's", "teacher.optim.clip=1e-3"]
    config = load_config(words, ROOT)
    assert config.export.prompt == "no"
    assert (config.clips.duets, config.clips.folder) == (1.0, "it's")
    assert config.teacher.optim.clip == 0.001
    assert to_dict(config)["student"]["stabiliser"] == "sinks"


def test_a_comment_within_a_value_is_refused() -> None:
    with refuses("config.bad-override", "clips.folder=a #1", "clips.folder='\"a #1\"'"):
        load_config(["clips.folder=a #1"], ROOT)
    assert load_config(["clips.folder=a#1"], ROOT).clips.folder == "a#1"


@pytest.mark.parametrize(
    ("word", "overrides"),
    [
        ("seed=1 clips.count=9", ("seed=1", "clips.count=9")),
        ("seed=1 export.prompt='a b'", ("seed=1", "export.prompt=a b")),
        ("export.prompt=a red ball", ("export.prompt=a red ball",)),
        ('export.prompt="010"', ('export.prompt="010"',)),
        ("clips.folder=it's", ("clips.folder=it's",)),
        ("", ()),
    ],
)
def test_a_word_with_one_override_keeps_its_spaces_and_quotes(
    word: str, overrides: tuple[str, ...]
) -> None:
    assert split_overrides([word]) == overrides


def test_a_value_that_is_no_yaml_is_one_sentence() -> None:
    with refuses("config.bad-override", "clips.count=[1", "not YAML"):
        load_config(["clips.count=[1"], ROOT)


@pytest.mark.parametrize("text", ["ball: {radius: [\n", "- a\n", "a: 1\na: 2\n", "a: !!python/x\n"])
def test_a_file_that_is_no_mapping_of_yaml_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with refuses("config.not-yaml", "mine.yaml"):
        read_yaml(tmp_path / "mine.yaml")


@pytest.mark.parametrize("broken", ["preset: [", "- a list", "\x00"])
def test_files_that_are_read_for_their_names_alone_are_named_too(
    tmp_path: Path, broken: str
) -> None:
    write_project(tmp_path)
    config, lock = tmp_path / "conf" / "config.yaml", tmp_path / "dvc.lock"
    config.write_text(broken)
    with refuses("config.not-yaml", config):
        tracked_preset(tmp_path)
    config.write_text("preset: pocket\n")
    lock.write_text(broken)
    with refuses("config.not-yaml", lock):
        refuse_old_lock(tmp_path, "pocket")
