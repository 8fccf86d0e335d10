"""DVC experiments in a private clone that shares the checkout's DVC cache; the checkout itself stays free and untouched.

``dvc exp run`` borrows the folder that it runs in: it stashes changes, moves HEAD and, with ``--temp``, still holds DVC's
lock and forgets half-trained work. The clone may be left in any state by a kill; it is put right before each use, and its
``.work`` lets a killed stage continue. Finished experiments are pushed to the checkout, for ``dvc exp show`` and ``apply``.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import atomic_dir, atomic_write, remove
from omniforcing.pipeline.declaration import PRESETS, dvc_target, lock_file, pipeline_file
from omniforcing.pipeline.generate import CODE, write_pipelines
from omniforcing.pipeline.runner import call_python, start_python

# What decides a result; other files may differ from the commit.
_SOURCES = ("conf", "pipelines", "src", "dvc.yaml")
# Pipelines of presets that are not committed; the clone makes its own.
_GENERATED = f":(exclude){PRESETS}"


@dataclass(frozen=True)
class Laboratory:
    """A clone for one preset's experiments.

    Attributes:
        root: the checkout, which receives the experiments.
        folder: the clone.
        preset: what runs in it.
        commit: the checkout's commit, the baseline of every experiment.
        lock: the preset's ``dvc.lock`` at the start.
    """

    root: Path
    folder: Path
    preset: str
    commit: str
    lock: bytes

    @classmethod
    def open(cls, root: Path, folder: Path, preset: str) -> Laboratory:
        """Make the clone or take the one that is there.

        Raises:
            OmniForcingError: outside git, if configuration or code is not committed, or if the preset has never been run.
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
        """The preset's lock, relative to the checkout and to the clone."""
        return lock_file(self.root, self.preset)

    def target(self, stage: str) -> str:
        """A stage of the preset as DVC's commands take it."""
        return dvc_target(self.root, self.preset, stage)

    @property
    def data(self) -> Path:
        """The preset's outputs in the clone."""
        return self.folder / "data" / self.preset

    def reset(self) -> None:
        """Put the clone on the commit and the lock, with nothing left of an experiment that was killed."""
        _git(self.folder, "checkout", "--quiet", "--force", "--detach", self.commit)
        # DVC would take up a half-done experiment that it finds among its refs, and its locks may name dead processes.
        for ref in _git(
            self.folder, "for-each-ref", "--format=%(refname)", "refs/exps"
        ).splitlines():
            _git(self.folder, "update-ref", "--no-deref", "-d", ref)
        remove(self.folder / ".dvc" / "tmp")
        self._share_cache()
        write_pipelines(self.folder, [self.preset])
        atomic_write(self.folder / self.lock_file, self.lock)
        # DVC takes into an experiment only what git knows.
        _git(self.folder, "add", "--force", pipeline_file(self.root, self.preset), self.lock_file)

    def _share_cache(self) -> None:
        cache = _dvc(self.root, "cache", "dir")
        if cache.returncode or not cache.stdout.strip():
            said = cache.stderr.strip().splitlines() or ["no reason given"]
            raise OmniForcingError(
                "experiments.dvc-failed",
                f"`dvc cache dir` failed in {self.root}: {said[-1]}; variants share that cache, mend it first",
            )
        atomic_write(
            self.folder / ".dvc" / "config.local", f"[cache]\n    dir = {cache.stdout.strip()}\n"
        )

    def check_out_baseline(self, target: str) -> None:
        """Fetch what the stage ``target`` and all before it wrote.

        Raises:
            OmniForcingError: if one of them has not run or is out of date.
        """
        self.reset()
        address = self.target(target)
        if _dvc(self.folder, "checkout", "--with-deps", address).returncode:
            raise _no_baseline(self.preset, "outputs are missing from DVC's cache")
        # Edited prose is no change of a stage; the digests tell.
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
        """The commit of a finished experiment that brought ``target`` up to date.

        None if there is none of this name and commit, or if it read other outputs than the baseline's: of a folder of videos
        that has changed, or of a stage that was run again and came out otherwise.
        """
        found = self._newest(name)
        return found if found and _same_outputs(self.lock, self._lock_of(found), target) else None

    def _lock_of(self, commit: str) -> str:
        return _git(self.root, "show", f"{commit}:{self.lock_file}")

    def _newest(self, name: str) -> str | None:
        ref = f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{name}"
        return _git(self.root, "for-each-ref", "--format=%(objectname)", ref) or None

    def run(
        self, name: str, overrides: Sequence[str], target: str, environment: Mapping[str, str]
    ) -> str:
        """Bring ``target`` up to date under overrides of the preset, as an experiment of the checkout; returns its commit.

        Stages that the overrides leave as they were are taken from DVC's cache. ``environment`` is added to that of the stages.
        An experiment of the same name and commit is replaced.

        Raises:
            OmniForcingError: if a stage fails; what it printed says why.
        """
        self.reset()
        # In the preset's file, because what stands there wins over conf/config.yaml; ++ also sets keys that it leaves out.
        changes = [
            word
            for o in overrides
            for word in ("--set-param", f"conf/preset/{self.preset}.yaml:++{o}")
        ]
        # The commit's code, not the checkout's, which may be edited meanwhile.
        code = os.pathsep.join(
            filter(None, [str(self.folder / "src"), os.environ.get("PYTHONPATH")])
        )
        words = ["exp", "run", "--name", name, *changes, self.target(target)]
        call_python(["-m", "dvc", *words], self.folder, PYTHONPATH=code, **environment)
        call_python(
            ["-m", "dvc", "exp", "push", "--quiet", "--force", "--no-cache", "origin", name],
            self.folder,
        )
        commit = self._newest(name)
        if commit is None:
            raise OmniForcingError(
                "experiments.dvc-failed",
                f"`dvc exp push` left no experiment {name} in {self.root}; run the same command again",
            )
        return commit

    def fetch(self, experiment: str, output: str, target: Path) -> Path:
        """Copy an output of an experiment, given by its commit, into the folder ``target``; returns where it lies there.

        If ``target`` exists, nothing is copied.
        """
        if not target.exists():
            with atomic_dir(target) as partial:
                words = [
                    "get",
                    "--quiet",
                    "--rev",
                    experiment,
                    "--out",
                    str(partial),
                    str(self.root),
                    output,
                ]
                call_python(["-m", "dvc", *words], self.root)
        return target / Path(output).name


def _git(folder: Path, *words: str) -> str:
    answer = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    if answer.returncode:
        said = answer.stderr.strip().splitlines() or ["no reason given"]
        raise OmniForcingError(
            "experiments.git-failed",
            f"`git {words[0]}` failed in {folder}: {said[-1]}; DVC's experiments need a git checkout",
        )
    return answer.stdout.strip()


def _dvc(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return start_python(["-m", "dvc", *words], folder, capture_output=True, text=True)


def _same_outputs(baseline: bytes, experiment: str, target: str) -> bool:
    """Whether every stage above ``target`` that two locks say was run in the same way wrote the same for it to read."""
    from yaml import safe_load

    ours, theirs = (safe_load(lock)["stages"] for lock in (baseline, experiment))
    makers = {
        out["path"]: stage for stage, entry in theirs.items() for out in entry.get("outs", [])
    }
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
    """Whether a stage wrote the same to ``path``, or was run in another way."""
    if any(ours.get(part) != theirs.get(part) for part in ("cmd", "deps", "params")):
        return bool(ours)
    written = [[out for out in entry["outs"] if out["path"] == path] for entry in (ours, theirs)]
    return written[0] == written[1]


def _refuse_uncommitted(root: Path) -> None:
    changed = _git(
        root,
        "status",
        "--porcelain",
        "--",
        *(path for path in _SOURCES if (root / path).exists()),
        _GENERATED,
    )
    if changed:
        # The first line may have lost its leading blank.
        first = changed.splitlines()[0].split(maxsplit=1)[1]
        raise OmniForcingError(
            "experiments.not-committed",
            f"{first} is not committed, and an experiment is a change of a commit; commit or stash it",
        )


def _no_baseline(preset: str, reason: str) -> OmniForcingError:
    return OmniForcingError(
        "experiments.no-baseline",
        f"preset {preset} has no finished baseline ({reason}); "
        f"run `omniforcing run --preset {preset}` first",
    )
