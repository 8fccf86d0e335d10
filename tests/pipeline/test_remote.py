"""Clips, shards and latents from a web server, by the commands of docs/how-to/cluster.md: DVC
brings them, and stages read files.
"""

import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from omniforcing.data.config import ClipsConfig
from omniforcing.data.sources import read_clips, write_clips
from tests.support.checkout import ENVIRONMENT, commit

pytestmark = pytest.mark.slow
Served = tuple[Path, str]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A folder, and the URL at which a web server has it."""
    folder = tmp_path_factory.mktemp("served")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run(folder: Path, *words: str) -> str:
    answer = subprocess.run(
        words,
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert answer.returncode == 0, answer.stdout
    return answer.stdout


def test_clips_are_imported_from_urls_and_brought_up_to_date(
    repository: Path, served: Served, tmp_path: Path
) -> None:
    folder, url = served
    made = ClipsConfig(count=3, heldout=1, heldout_duets=0, seconds=1, height=32, width=32)
    write_clips(made, 0, folder)
    (repository / "videos").mkdir()
    for number, entry in enumerate(read_clips(folder)):
        name = Path(entry.path).relative_to(folder).as_posix()
        run(repository, "dvc", "import-url", f"{url}/{name}", f"videos/{number}.mp4")
        (repository / "videos" / f"{number}.txt").write_text(entry.caption)
    clips = ClipsConfig(
        source="folder",
        folder=str(repository / "videos"),
        heldout=1,
        seconds=1,
        height=32,
        width=32,
    )
    (tmp_path / "clips").mkdir()
    found = write_clips(clips, 0, tmp_path / "clips")
    assert found["sources"] == 3 and not found["rejects"]
    commit(repository)
    # What changes there is fetched when asked for.
    replaced = folder / "clips" / "000000.mp4"
    replaced.write_bytes(replaced.read_bytes() + b"more")
    assert (repository / "videos" / "0.mp4").read_bytes() != replaced.read_bytes()
    run(repository, "dvc", "update", "videos/0.mp4.dvc")
    assert (repository / "videos" / "0.mp4").read_bytes() == replaced.read_bytes()


def test_a_stages_output_comes_from_a_url_and_is_not_made_again(
    repository: Path, served: Served, tmp_path: Path
) -> None:
    folder, url = served
    run(repository, "dvc", "repro")
    run(repository, "dvc", "remote", "add", "--default", "store", str(folder))
    run(repository, "dvc", "push")
    commit(repository)
    other = tmp_path / "other"
    run(tmp_path, "git", "clone", "-q", str(repository), str(other))
    run(other, "dvc", "remote", "add", "--local", "--default", "web", url)
    run(other, "dvc", "pull", "clips")
    assert (other / "data" / "pocket" / "clips" / "numbers.txt").read_text() == "1 1 1 "
    assert not (other / "data" / "pocket" / "teacher").exists()
    run(other, "dvc", "pull")
    assert run(other, "dvc", "repro").count("didn't change, skipping") == 3
