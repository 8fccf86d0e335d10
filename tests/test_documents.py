"""The documents: links lead somewhere, README is short, and its commands and the tutorials' run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from omniforcing.core.environment import FORKS_VARIABLE

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if path.name != "CHANGELOG.md"
)

# --- links ----------------------------------------------------------------------------------------


def links(page: Path) -> Iterator[str]:
    """Targets of a page's links and pictures, code left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not target.startswith(("http://", "https://")):
            yield target


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{target}: there is no such file"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{target}: {found.name} has no such heading"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_and_classes_that_are_named_exist(name: str) -> None:
    spans = re.findall(r"`([^`\n]+)`", (ROOT / name).read_text(encoding="utf-8"))
    package = ROOT / "src" / "omniforcing"
    for span in spans:
        if re.fullmatch(r"[\w./-]+/[\w.-]+\.(py|html|md|yaml)", span):
            homes = (ROOT / span, package / span, ROOT / "tests" / span)
            assert any(home.is_file() for home in homes), f"{span}: there is no such file"
    classes = {span for span in spans if re.fullmatch(r"[A-Z][a-z]+[A-Za-z]+", span)}
    source = "\n".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    known = set(re.findall(r"^class (\w+)", source, flags=re.MULTILINE))
    assert classes - {"Args"} <= known


def test_readme_is_one_short_story() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 1000


# --- commands -------------------------------------------------------------------------------------
# A block of shell commands runs unless a comment in front of it, `<!-- not run: REASON -->`, says
# why not. Blocks run in order, in a clean clone, with these substitutions, which make minutes of
# hours. A ```diff block is applied with `git apply`; a block after `<!-- file: PATH
# -->` is written to that file.

NOT_RUN = re.compile(r"<!-- not run: [^>]+ -->\s*$")
FILE = re.compile(r"<!-- file: (\S+) -->\s*$")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SCALED = {
    "make pocket": "make smoke",
    "make test": "make --dry-run test",
    "data/pocket": "data/smoke",
    "--preset pocket": "--preset smoke",
    "conf/preset/pocket": "conf/preset/smoke",
    "conf/preset/small": "conf/preset/smoke",
    "--seconds 10": "--seconds 3",
    "--preset ltx2": "--preset smoke",
}


@dataclass(frozen=True)
class Block:
    """A block of a page to try: the line where it begins, and the script that tries it."""

    page: str
    line: int
    script: str


def blocks(page: Path) -> Iterator[Block]:
    """Blocks of commands, patches and files of a page; those left out say why."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        before, language, script = text[: found.start()], found[1], found[2]
        file = FILE.search(before)
        if file:
            script = f"cat > {file[1]} <<'END_OF_BLOCK'\n{script}END_OF_BLOCK\n"
        elif language == "diff":
            script = f"git apply -v <<'END_OF_BLOCK'\n{script}END_OF_BLOCK\n"
        elif language not in ("", "sh", "bash") or NOT_RUN.search(before):
            continue
        for written, tried in SCALED.items():
            script = script.replace(written, tried)
        yield Block(page.name, text.count("\n", 0, found.start()) + 1, script)


def test_blocks_are_found_and_say_why_they_are_left_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```\nmake pocket\n```\n\n<!-- not run: it serves -->\n```\nmake ui\n```\n\n"
        "```python\nx = 1\n```\n\n```diff\n+a\n```\n\n<!-- file: b.py -->\n```python\nb = 1\n```\n"
    )
    found = list(blocks(page))
    assert [block.line for block in found] == [1, 14, 19]
    assert found[0].script == "make smoke\n"
    assert "git apply" in found[1].script and "\n+a\n" in found[1].script
    assert found[2].script.startswith("cat > b.py") and "\nb = 1\n" in found[2].script


def clone(folder: Path) -> dict[str, str]:
    """Clone the checkout and return the environment in which its commands run."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    # What mypy found in the checkout spares it the libraries, as in a clone that is not new.
    if (ROOT / ".mypy_cache").is_dir():
        shutil.copytree(ROOT / ".mypy_cache", folder / ".mypy_cache")
    # The installed environment stands in for the one that `make` would take minutes to make. It
    # must be newer than what it was made of, and the clone's code comes before the checkout's.
    (folder / ".venv").symlink_to(sys.prefix)
    for name in ("constraints.txt", "pyproject.toml"):
        os.utime(folder / name, (0, 0))
    paths = {"PYTHONPATH": f"{folder / 'src'}:{folder}", "MAKEFLAGS": ""}
    # The clone has its own interpreter, so its pipeline runs have their own server for stages.
    inherited = {k: v for k, v in os.environ.items() if k != FORKS_VARIABLE}
    return {**inherited, **paths, "GIT_CONFIG_GLOBAL": "/dev/null"}


def run(script: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a script in bash, stopping at the first command that fails; return what it printed."""
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert answer.returncode == 0, f"{script}\n{answer.stdout[-4000:]}"
    return answer.stdout


# Pages whose blocks run in one clone after another, and what that clone does before them. Own clips
# need the pocket world's clips alone, so they are tried beside the others.
JOURNEYS = {
    "smoke": (
        [
            "README",
            *(f"docs/tutorials/{name}" for name in ("first-stream", "read-a-run", "add-a-loss")),
        ],
        "",
    ),
    "clips": (
        ["docs/tutorials/own-clips"],
        "source .venv/bin/activate; omniforcing run --preset smoke clips",
    ),
}


@pytest.mark.documents
@pytest.mark.timeout(3600)  # it runs the smoke pipeline twice and trains small stages
@pytest.mark.parametrize("journey", JOURNEYS)
def test_every_command_of_readme_and_tutorials_runs_in_a_clean_clone(
    journey: str, tmp_path: Path
) -> None:
    folder = tmp_path / "omniforcing"
    environment = clone(folder)
    pages, before = JOURNEYS[journey]
    run(before, folder, environment)
    smoke = []  # what each run of the smoke pipeline printed
    for page in pages:
        for block in blocks(ROOT / f"{page}.md"):
            try:
                printed = run(block.script, folder, environment)
            except AssertionError as error:
                raise AssertionError(f"{block.page}, line {block.line}: {error}") from error
            if block.script.startswith("make smoke"):
                smoke.append(printed)
        if page == "README":
            # Nothing but the preset's own pipeline is new. (DVC reads no lock that git ignores, so
            # such a pipeline shows in git status.)
            status = run("git status --porcelain --untracked-files=all", folder, environment)
            ours = ("?? .venv", "?? clip.mp4")  # a link to an environment, and what README streams
            new = [line for line in status.splitlines() if line not in ours]
            assert [line[:22] for line in new] == 2 * ["?? pipelines/presets/s"], status
    if journey == "smoke":
        _, again = smoke  # the tutorial's own run has nothing to do
        assert again.count("didn't change, skipping") == 12
