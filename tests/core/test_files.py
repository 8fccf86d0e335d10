"""Files are whole or absent, whatever kills the writer; manifests notice any change."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omniforcing.core.files import (
    atomic_dir,
    atomic_write,
    disk_full,
    folder_digest,
    forget_origins,
    new_file,
    read_json,
    refusal,
    tree_digest,
    verify_manifest,
    write_json,
    write_manifest,
    writing,
)
from tests.support.refusals import refuses


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if ".tmp-" in p.name]


def test_atomic_dir_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for text in ("old", "new"):
        with atomic_dir(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "a.txt").write_text(text)
    assert (target / "sub" / "a.txt").read_text() == "new"
    assert leftovers(tmp_path) == []


def test_failed_atomic_dir_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_dir(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError, match="half-way"), atomic_dir(target) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError("half-way")
    assert (target / "a").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_killed_writer_leaves_nothing_behind_for_long(tmp_path: Path) -> None:
    target = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; "
        "from omniforcing.core.files import atomic_dir\n"
        f"with atomic_dir(Path({str(target)!r})) as f:\n"
        "    (f / 'a').write_text('part'); print('writing', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == "writing"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not target.exists()
    assert len(leftovers(tmp_path)) == 1
    with atomic_dir(target) as folder:
        (folder / "a").write_text("whole")
    assert (target / "a").read_text() == "whole"
    assert leftovers(tmp_path) == []


def test_a_name_is_no_pattern(tmp_path: Path) -> None:
    """Nor does what one leaves behind look like another's."""
    for name in ("a[1].json", "a1.json"):
        (tmp_path / f".{name}.tmp-{socket.gethostname()}-99999999-0").touch()
    write_json(tmp_path / "a[1].json", {})
    write_json(tmp_path / "a**b.json", {})
    left = sorted(path.name.partition(".tmp-")[0] for path in tmp_path.iterdir())
    assert left == [".a1.json", "a**b.json", "a[1].json"]


def test_another_live_writer_is_left_alone(tmp_path: Path) -> None:
    host = socket.gethostname()
    alive, dead = (tmp_path / f".out.tmp-{host}-{pid}-ab" for pid in (os.getppid(), 2**30))
    elsewhere = tmp_path / f".out.tmp-{host}.elsewhere-{os.getppid()}-ab"
    for folder in (alive, dead, elsewhere):
        folder.mkdir()
    with atomic_dir(tmp_path / "out"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"out", alive.name}


def test_atomic_write_and_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"b": 1, "a": "ü"})
    assert path.read_text() == '{\n  "a": "ü",\n  "b": 1\n}\n'
    assert read_json(path) == {"a": "ü", "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": "ü", "b": 1}
    atomic_write(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    with refuses("file.unreadable", "a.json"):
        read_json(path)


@pytest.mark.parametrize("write", [atomic_write, new_file, atomic_dir])
def test_an_unwritable_place_is_one_sentence(tmp_path: Path, write: Callable[..., Any]) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with refuses("file.cannot-write", path):
            if write is atomic_write:
                atomic_write(path, "")
            else:
                with write(path):
                    pass


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk.full"),
        (errno.EDQUOT, "disk.full"),
        (errno.EFBIG, "disk.full"),
        (errno.EROFS, "disk.read-only"),
        (errno.EACCES, "file.no-permission"),
        (errno.EPERM, "file.no-permission"),
        (errno.EIO, None),
    ],
)
def test_what_the_disk_refuses_is_told_with_the_file(number: int, code: str | None) -> None:
    for error, path in (
        (OSError(number, os.strerror(number), "a.tar"), None),
        (OSError(number, os.strerror(number)), Path("a.tar")),
    ):
        told = refusal(error, path)
        assert (told and told.code) == code
        assert told is None or "a.tar" in str(told)
    assert disk_full(error) == (code == "disk.full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_no_space_left_is_told_and_other_errors_are_not_hidden() -> None:
    with refuses("disk.full", "shard.tar"), writing(Path("shard.tar")):
        Path("/dev/full").write_bytes(b"x" * 100_000)
    with pytest.raises(PermissionError), writing(Path("shard.tar")):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_manifest_names_the_missing_and_the_altered_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.bin").write_bytes(b"12345")
    (tmp_path / "y.bin").write_bytes(b"678")
    write_manifest(tmp_path, {"kind": "test"})
    assert verify_manifest(tmp_path)["kind"] == "test"
    (tmp_path / "sub" / "x.bin").write_bytes(b"12349")
    with refuses("file.altered", "sub/x.bin"):
        verify_manifest(tmp_path)
    (tmp_path / "sub" / "x.bin").unlink()
    with refuses("file.missing", "sub/x.bin"):
        verify_manifest(tmp_path)
    with refuses("file.not-a-folder", "nowhere"):
        verify_manifest(tmp_path / "nowhere")


def test_tree_digest_follows_names_and_contents_only(tmp_path: Path) -> None:
    a = tmp_path / "a"
    (a / "__pycache__").mkdir(parents=True)
    (a / "m.py").write_text("1")
    before = tree_digest(a)
    (a / "__pycache__" / "m.pyc").write_text("compiled")
    os.utime(a / "m.py", (0, 0))
    assert tree_digest(a) == before
    (a / "m.py").rename(a / "n.py")
    assert tree_digest(a) != before
    with refuses("file.missing", tmp_path / "b"):
        tree_digest(tmp_path / "b")


def test_folder_digest_changes_with_any_file(tmp_path: Path) -> None:
    for text in ("1", "2"):
        with atomic_dir(tmp_path / text) as folder:
            (folder / "m").write_text(text)
            write_manifest(folder)
    assert folder_digest(tmp_path / "1") != folder_digest(tmp_path / "2")


def test_a_models_config_forgets_where_it_was_loaded_from(tmp_path: Path) -> None:
    write_json(tmp_path / "vae" / "config.json", {"_name_or_path": "/somewhere/else", "width": 3})
    forget_origins(tmp_path)
    assert read_json(tmp_path / "vae" / "config.json") == {"width": 3}


def test_a_pipe_or_an_open_file_is_written_and_stays_what_it_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_json(pipe, [1])
        assert json.loads(os.read(reader, 100)) == [1]
    finally:
        os.close(reader)
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    with (tmp_path / "file").open("wb") as file:
        write_json(Path(f"/dev/fd/{file.fileno()}"), [2])
        write_json(Path(f"/proc/self/fd/{file.fileno()}"), [3])
    assert json.loads((tmp_path / "file").read_text().replace("]\n[", ",")) == [2, 3]


def test_a_reader_that_closes_the_pipe_ends_a_command_without_a_word() -> None:
    for output in ("print('x' * 100_000)", "print('x')", "print('x'); raise SystemExit(0)"):
        code = (
            "import sys, os\n"
            "from omniforcing.core.console import run_command\n"
            "def command():\n"
            "    sys.stdin.read()\n"
            f"    {output}\n"
            "sys.exit(run_command(command))\n"
        )
        words = [sys.executable, "-c", code]
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        with subprocess.Popen(words, **pipes) as process:  # type: ignore[call-overload]
            process.stdout.close()
            process.stdin.close()
            said = process.stderr.read()
        assert (process.returncode, said) == (141, b"")
