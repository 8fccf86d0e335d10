"""Run DVC experiments in a private clone that shares the checkout's DVC cache.

``dvc exp run`` would occupy the checkout: it stashes changes, moves HEAD and, even with ``--temp``,
holds DVC's lock and forgets half-trained work. A clone leaves the checkout untouched. A kill may
leave the clone in any state; it is reset before each use, and its ``.work`` lets a killed stage
continue. Finished experiments are pushed to the checkout, for ``dvc exp show`` and ``apply``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_dir, atomic_write, folder_digest, remove
from omniforcing.pipeline.declaration import PRESETS, dvc_target, lock_file, pipeline_file
from omniforcing.pipeline.generate import CODE, write_pipelines
from omniforcing.pipeline.runner import call_python, start_python

# Paths that decide a result and must equal the commit; others may differ from it.
_SOURCES = ("conf", "pipelines", "src", "dvc.yaml")
# Presets' generated pipelines, which are not committed; the clone generates its own.
_GENERATED = f":(exclude){PRESETS}"


@dataclass(frozen=True)
class Laboratory:
    """A clone for one preset's experiments.

    Attributes:
        root: the checkout, which receives the experiments.
        folder: the clone.
        preset: preset that runs in it.
        commit: the checkout's commit, on which every experiment is based.
        lock: content of the preset's ``dvc.lock`` in the checkout, when the clone was opened.
    """

    root: Path
    folder: Path
    preset: str
    commit: str
    lock: bytes

    @classmethod
    def open(cls, root: Path, folder: Path, preset: str) -> Laboratory:
        """Open the clone, and make it if there is none.

        Args:
            root: the checkout.
            folder: of the clone.
            preset: preset to run in it.

        Raises:
            OmniForcingError: if ``root`` is no git checkout, configuration or code is not
                committed, or the preset has never run.
        """
        _refuse_uncommitted(root)
        lock = root / lock_file(root, preset)
        if not lock.is_file():
            raise _no_baseline(preset, f"{lock_file(root, preset)} is missing")
        if not folder.exists():
            with atomic_dir(folder) as partial:
                _git(root, "clone", "--quiet", "--shared", "--no-checkout", str(root), str(partial))
        return cls(root, folder, preset, _git(root, "rev-parse", "HEAD"), lock.read_bytes())

    @property
    def lock_file(self) -> str:
        """Path of the preset's ``dvc.lock``, relative to the checkout and to the clone."""
        return lock_file(self.root, self.preset)

    def target(self, stage: str) -> str:
        """Return the address of a stage of the preset for DVC's commands."""
        return dvc_target(self.root, self.preset, stage)

    @property
    def data(self) -> Path:
        """Folder of the preset's outputs in the clone."""
        return self.folder / "data" / self.preset

    def reset(self) -> None:
        """Set the clone to the commit and the lock, and remove what a killed experiment left."""
        _git(self.folder, "checkout", "--quiet", "--force", "--detach", self.commit)
        # DVC would continue a half-done experiment that it finds among its refs, and its locks may
        # name dead processes.
        refs = _git(self.folder, "for-each-ref", "--format=%(refname)", "refs/exps")
        for ref in refs.splitlines():
            _git(self.folder, "update-ref", "--no-deref", "-d", ref)
        remove(self.folder / ".dvc" / "tmp")
        # The checkout's cache may lie outside the checkout.
        shared = f"[cache]\n    dir = {_cache_folder(self.root)}\n"
        atomic_write(self.folder / ".dvc" / "config.local", shared)
        write_pipelines(self.folder, [self.preset])
        atomic_write(self.folder / self.lock_file, self.lock)
        # An experiment contains only files that git tracks.
        _git(self.folder, "add", "--force", pipeline_file(self.root, self.preset), self.lock_file)

    def check_out_baseline(self, target: str) -> None:
        """Check out the baseline's outputs in the clone, of stage ``target`` and all before it.

        Raises:
            OmniForcingError: if one of the stages has not run or is out of date.
        """
        self.reset()
        address = self.target(target)
        if _dvc(self.folder, "checkout", "--with-deps", address).returncode:
            raise _no_baseline(self.preset, "outputs are missing from DVC's cache")
        # Stages depend on digests of their code, in which prose does not count: compute them first.
        call_python(["-m", "dvc", "repro", "--quiet", self.target(CODE)], self.folder)
        status = _dvc(self.folder, "status", "--json", "--with-deps", address)
        if status.returncode:
            raise OmniForcingError(
                "experiments.dvc-failed",
                f"`dvc status` failed in {self.folder}: {status.stderr.strip()}",
            )
        changed = list(json.loads(status.stdout))
        if changed:
            raise _no_baseline(self.preset, f"changed since it ran: {', '.join(changed)}")

    def find(self, name: str, target: str) -> str | None:
        """Find a finished experiment that brought ``target`` up to date.

        Args:
            name: of the experiment.
            target: a stage.

        Returns:
            Its commit. None if there is none of this name on the baseline's commit, or if it read
            other outputs than the baseline's: of a folder of videos that has changed since, or of
            a stage that was run again with another result.
        """
        found = self._newest(name)
        return found if found and _same_outputs(self.lock, self._lock_of(found), target) else None

    def _lock_of(self, commit: str) -> str:
        """Read the preset's ``dvc.lock`` at a commit."""
        return _git(self.root, "show", f"{commit}:{self.lock_file}")

    def _newest(self, name: str) -> str | None:
        """Return the commit of the experiment ``name`` in the checkout; None if there is none."""
        ref = f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{name}"
        return _git(self.root, "for-each-ref", "--format=%(objectname)", ref) or None

    def names(self) -> list[str]:
        """List the names of the checkout's experiments on the baseline's commit."""
        folder = f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/"
        refs = _git(self.root, "for-each-ref", "--format=%(refname)", folder).splitlines()
        return [ref.removeprefix(folder) for ref in refs]

    def keep(self, output: Path, folder: Path) -> Path:
        """Copy an output of the baseline, which experiments replace, unless it is kept already.

        Args:
            output: path of the output in the clone.
            folder: folder that gets the copy, under the output's digest.
        """
        target = folder / folder_digest(output)[:12]
        if not target.exists():
            with atomic_dir(target) as partial:
                shutil.copytree(output, partial, dirs_exist_ok=True)
        return target

    def run(
        self,
        name: str,
        overrides: Sequence[str],
        targets: Sequence[str],
        environment: Mapping[str, str],
        seed: int | None = None,
    ) -> str:
        """Run an experiment in the clone and push it to the checkout.

        Stages that the overrides do not affect are taken from DVC's cache. An experiment of the
        same name on the same commit is replaced.

        Args:
            name: of the experiment.
            overrides: of the preset, each ``key=value``.
            targets: stages to bring up to date, with all before them; with a seed, without.
            environment: variables added to those of the stages.
            seed: seed of the stages; None for the preset's.

        Returns:
            The experiment's commit.

        Raises:
            OmniForcingError: if a stage fails (its output says why), or DVC keeps no experiment.
        """
        self.reset()
        # Set in the preset's file, whose values win over conf/config.yaml; ++ also adds keys that
        # the file does not have.
        changes: list[str] = []
        for override in overrides:
            changes += ["--set-param", f"conf/preset/{self.preset}.yaml:++{override}"]
        alone = []
        if seed is not None:
            # All before keeps the preset's seed, which those stages depend on too.
            changes += ["--set-param", f"conf/config.yaml:seed={seed}"]
            alone = ["--single-item"]
        # Use the clone's code: the checkout's may be edited while the experiment runs.
        code = os.pathsep.join(
            filter(None, [str(self.folder / "src"), os.environ.get("PYTHONPATH")])
        )
        words = ["exp", "run", "--name", name, *changes, *alone, *map(self.target, targets)]
        call_python(["-m", "dvc", *words], self.folder, PYTHONPATH=code, **environment)
        call_python(
            ["-m", "dvc", "exp", "push", "--quiet", "--force", "--no-cache", "origin", name],
            self.folder,
        )
        commit = self._newest(name)
        if commit is None:
            raise OmniForcingError(
                "experiments.dvc-failed",
                f"`dvc exp push` left no experiment {name} in {self.root}; "
                f"run the same command again",
            )
        return commit

    def fetch(self, experiment: str, output: str, target: Path) -> Path:
        """Copy an output of an experiment, unless ``target`` exists already.

        Args:
            experiment: its commit.
            output: path of the output in the checkout.
            target: folder that gets it.

        Returns:
            The output's path below ``target``.

        Raises:
            OmniForcingError: if DVC cannot get it.
        """
        if not target.exists():
            with atomic_dir(target) as partial:
                words = ["get", "--quiet", "--rev", experiment, "--out", str(partial)]
                call_python(["-m", "dvc", *words, str(self.root), output], self.root)
        return target / Path(output).name


def _git(folder: Path, *words: str) -> str:
    """Run git in a folder and return its stdout, stripped.

    Raises:
        OmniForcingError: if git fails.
    """
    answer = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    if answer.returncode:
        raise OmniForcingError(
            "experiments.git-failed",
            f"`git {words[0]}` failed in {folder}: {_reason(answer)}; "
            f"DVC's experiments need a git checkout",
        )
    return answer.stdout.strip()


def _reason(answer: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a command wrote to stderr."""
    return (answer.stderr.strip().splitlines() or ["no reason given"])[-1]


@cache
def _cache_folder(root: Path) -> str:
    """Ask DVC for the folder of a checkout's cache."""
    found = _dvc(root, "cache", "dir")
    if found.returncode or not found.stdout.strip():
        raise OmniForcingError(
            "experiments.dvc-failed",
            f"`dvc cache dir` failed in {root}: {_reason(found)}; "
            f"variants share that cache, mend it first",
        )
    return found.stdout.strip()


def _dvc(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return start_python(["-m", "dvc", *words], folder, capture_output=True, text=True)


def _same_outputs(baseline: bytes, experiment: str, target: str) -> bool:
    """Whether an experiment read the baseline's outputs wherever it ran a stage in the same way.

    Args:
        baseline: content of the baseline's ``dvc.lock``.
        experiment: content of the experiment's.
        target: the stage; those before it are compared.
    """
    from yaml import safe_load

    ours, theirs = (safe_load(lock)["stages"] for lock in (baseline, experiment))
    makers = {
        out["path"]: stage for stage, entry in theirs.items() for out in entry.get("outs", [])
    }
    # Walk up from the target: outputs that it depends on, then those that they were made from.
    read: set[str] = set()
    waiting = [target]
    while waiting:
        deps = theirs.get(waiting.pop(), {}).get("deps", [])
        new = {dep["path"] for dep in deps if dep["path"] in makers} - read
        read |= new
        waiting += [makers[path] for path in new]
    return all(
        _same_output(ours.get(makers[path], {}), theirs[makers[path]], path) for path in read
    )


def _same_output(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str) -> bool:
    """Whether a stage's two runs fit together: same output, or knowingly run in another way.

    Args:
        ours: the stage's entry in the baseline's lock; empty if the baseline lacks it.
        theirs: its entry in the experiment's lock.
        path: the output to compare.
    """
    if any(ours.get(part) != theirs.get(part) for part in ("cmd", "deps", "params")):
        return bool(ours)
    written = [[out for out in entry["outs"] if out["path"] == path] for entry in (ours, theirs)]
    return written[0] == written[1]


def _refuse_uncommitted(root: Path) -> None:
    """Raise if a path that decides a result differs from the commit."""
    sources = [path for path in _SOURCES if (root / path).exists()]
    changed = _git(root, "status", "--porcelain", "--", *sources, _GENERATED)
    if changed:
        # A line is "XY path", and X may be a blank, which the first line has lost by stripping.
        first = changed.splitlines()[0].split(maxsplit=1)[1]
        raise OmniForcingError(
            "experiments.not-committed",
            f"{first} is not committed, and an experiment is a change of a commit; "
            f"commit or stash it",
        )


def _no_baseline(preset: str, reason: str) -> OmniForcingError:
    return OmniForcingError(
        "experiments.no-baseline",
        f"preset {preset} has no finished baseline ({reason}); "
        f"run `omniforcing run --preset {preset}` first",
    )
