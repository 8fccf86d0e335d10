"""The command line: help, version, mistakes, completion."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from yaml import safe_load

from omniforcing import __version__
from omniforcing.cli import main
from omniforcing.cli.main import omniforcing
from omniforcing.cli.options import split_overrides
from omniforcing.core.config import to_dict
from omniforcing.core.environment import FORKS_VARIABLE
from omniforcing.pipeline.config import load_config
from tests.support.refusals import refuses

ROOT = Path(__file__).parents[1]
COMMANDS = {
    *("run", "stage", "job", "kuberay", "ablation", "plan", "stream", "serve", "demo"),
    *(
        "inspect",
        "measure",
        "compare",
        "play",
        "release",
        "weights",
        "config",
        "push",
        "pull",
        "pipeline",
        "doctor",
    ),
    "completion",
}


@pytest.fixture(autouse=True)
def not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process: one that were forked would print past pytest."""
    monkeypatch.delenv(FORKS_VARIABLE, raising=False)


def run(*words: str, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "omniforcing", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **variables},
    )


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that ends well prints."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_commands_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(omniforcing.commands) == COMMANDS
    for words in ((), ("--help",), ("-h",)):
        text = shown(capsys, *words)
        listed = set(re.findall(r"^  (\w+)  +\w", text, re.MULTILINE))
        assert listed >= COMMANDS
        assert "Examples:" in text and "--version" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, "--version") == f"omniforcing {__version__}\n"


def all_commands() -> list[list[str]]:
    found = []
    for name, command in omniforcing.commands.items():
        context = click.Context(command)
        below = command.list_commands(context) if isinstance(command, click.Group) else []
        found += [[name], *([name, other] for other in below)]
    return found


@pytest.mark.parametrize("words", all_commands(), ids=" ".join)
def test_help_of_every_command_has_two_examples_and_describes_every_option(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, *words, "--help")
    usage, _, examples = text.partition("Examples:\n")
    assert usage.startswith(f"Usage: omniforcing {' '.join(words)}")
    assert len(re.findall(r"omniforcing \w", examples)) >= 2
    command: click.Command = omniforcing
    for word in words:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), word)  # type: ignore[assignment]
    assert command.help
    assert all(getattr(parameter, "help", None) for parameter in command.params)


def test_config_prints_what_a_stage_would_see() -> None:
    answer = run("config", "--preset", "smoke", "clips.count=17")
    assert answer.returncode == 0
    assert safe_load(answer.stdout) == to_dict(load_config(["clips.count=17"], ROOT, "smoke"))


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["config", "clips.cuont=1"], ["clips.cuont", "'clips.count'"]),
        (["config", "preset=smoke"], ["--preset smoke"]),
        (["strem"], ["strem", "'stream'"]),
        (["weights", "imprt"], ["imprt", "'import'"]),
        (["stage", "techer"], ["techer", "'teacher'"]),
        (["run", "techer"], ["techer", "'teacher'"]),
        (["run", "preset=smoke"], ["--preset smoke"]),
        (
            ["run", "teacher", "teacher.text_dropout=0.5"],
            [
                "`dvc exp run -S conf/preset/pocket.yaml:++teacher.text_dropout=0.5`",
                "`omniforcing stage STAGE teacher.text_dropout=0.5`",
            ],
        ),
        (
            ["run", "--preset", "smoke", "seed=1"],
            ["`dvc exp run -S conf/config.yaml:++seed=1 pipelines/presets/smoke/dvc.yaml`"],
        ),
        (["run", "--dry-run", "teacher"], ["--dry-run"]),
        (["run", "--keep", "teacher"], ["--keep"]),
        (["stream", "--promt", "a"], ["--promt", "'--prompt'"]),
        (["stream"], ["--out", "omniforcing stream --help"]),
        (["stream", "--prompt", "a", "--artifact", "/nowhere", "--out", "a.mp4"], ["/nowhere"]),
        (["inspect", "/nowhere"], ["/nowhere"]),
        (["pipeline"], ["--write"]),
        (["completion", "tcsh"], ["tcsh", "bash"]),
        (["weights"], ["omniforcing weights --help"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(
    words: list[str], facts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error") and said.count("\n") == 1
    assert [fact for fact in facts if fact not in said] == []


def test_overrides_may_come_in_one_word() -> None:
    assert split_overrides(["a.b=1 c='x y'", "", "d=2"]) == ("a.b=1", "c=x y", "d=2")
    with refuses("option.preset-as-override", "--preset smoke"):
        split_overrides(["a=1 preset=smoke"])


@pytest.mark.parametrize("package", ["dvc", "ray", "mlflow", "lightning", "starlette", "uvicorn"])
def test_help_needs_no_package_of_an_extra(package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; sys.modules['torch'] = None\n"
    code += "from omniforcing.cli import main; main(sys.argv[1:])"
    for words in (["--help"], ["serve", "--help"], ["plan", "--help"], ["stage", "teacher", "-h"]):
        command = [sys.executable, "-c", code, *words]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        (["job", "teacher", "cluster=ray"], "ray", "pipeline"),
        (["serve", "--artifact", str(ROOT)], "uvicorn", "serve"),
        (["demo"], "uvicorn", "serve"),
    ],
)
def test_a_missing_package_is_named(words: list[str], package: str, extra: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None\n"
    code += f"from omniforcing.cli import main; main({words!r})"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 2
    assert f"needs the package {package}" in answer.stderr
    assert f"omniforcing[{extra}]" in answer.stderr and "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("omniforcing pl", {"plan", "play"}),
        ("omniforcing stage causal_", {"causal_ode", "causal_decoder"}),
        ("omniforcing run --preset s", {"small", "smoke"}),
        ("omniforcing run --f", {"--foundation"}),
        ("omniforcing ablation without-II", {"without-II", "without-III"}),
    ],
)
def test_a_shell_completes_commands_options_and_names(typed: str, offered: set[str]) -> None:
    words = typed.split()
    answer = run(
        COMP_WORDS=typed,
        COMP_CWORD=str(len(words) - 1),
        _OMNIFORCING_COMPLETE="bash_complete",
    )
    assert answer.returncode == 0, answer.stderr
    assert {line.partition(",")[2] for line in answer.stdout.splitlines()} == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "completion", shell)
    assert f"_OMNIFORCING_COMPLETE={shell}_complete" in text and "omniforcing" in text


@pytest.mark.parametrize("script", sorted((ROOT / "pipelines").glob("*.py")), ids=lambda p: p.stem)
def test_files_in_pipelines_are_doors_to_the_command(script: Path) -> None:
    """None holds logic; `stages.py` declares the stages."""
    if script.stem == "stages":
        return
    assert len(script.read_text().splitlines()) <= 8
    answer = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert answer.returncode == 0, answer.stderr
    name = {"main": "run", "ablation": "ablation"}.get(script.stem, f"stage {script.stem}")
    assert answer.stdout.startswith(f"Usage: omniforcing {name} ")
