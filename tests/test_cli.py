"""The command line: help, version, mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest
from yaml import safe_load

from omniforcing import __version__
from omniforcing.cli import main
from omniforcing.core.config import to_dict
from omniforcing.pipeline.config import load_config

ROOT = Path(__file__).parents[1]


def run(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "omniforcing.cli", *words],
        capture_output=True,
        text=True,
        cwd=folder,
    )


def test_help_lists_the_commands_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 0
        shown = capsys.readouterr().out
        for part in ("stream ", "inspect ", "config ", "examples:", "--version"):
            assert part in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"omniforcing {__version__}\n"


def test_config_prints_what_a_stage_would_see() -> None:
    answer = run("config", "--preset", "smoke", "clips.count=17")
    assert answer.returncode == 0
    assert safe_load(answer.stdout) == to_dict(load_config(["clips.count=17"], ROOT, "smoke"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["config", "clips.cuont=1"],
            "]: unknown key 'clips.cuont' in the command line; did you mean 'clips.count'?",
        ),
        (["strem"], "invalid choice: 'strem'"),
        (
            ["stream", "--prompt", "a", "--artifact", "/nowhere", "--out", "/tmp/a.mp4"],
            "]: /nowhere",
        ),
        (["stream"], "the following arguments are required"),
        (["inspect", "/nowhere"], "]: /nowhere"),
    ],
)
def test_a_mistake_is_a_sentence_and_exit_code_2(words: list[str], sentence: str) -> None:
    answer = run(*words)
    assert answer.returncode == 2
    assert sentence in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    code = "import sys; sys.modules['webdataset'] = None; sys.modules['av'] = None\n"
    code += f"from omniforcing.cli import main; main(['inspect', {str(tmp_path)!r}])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 2
    assert "needs the package av" in answer.stderr or "error[" in answer.stderr
    assert "Traceback" not in answer.stderr
