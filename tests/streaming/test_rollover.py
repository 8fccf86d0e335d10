"""A server that changes to the model that an alias of MLflow's registry names now."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from omniforcing.cli import main
from omniforcing.serving.protocol.messages import Limits
from omniforcing.serving.rollover import Alias, Rollover
from omniforcing.serving.service import ServedModel, Service
from omniforcing.streaming.artifact import Artifact
from omniforcing.streaming.engine import Engine
from omniforcing.tracking.store import bound_always, bounded
from tests.support.refusals import refused, refuses
from tests.support.releases import Champions
from tests.support.serving import Server, begin, play, say, server, take
from tests.support.streams import file_of, settled

pytestmark = pytest.mark.extended

SECONDS = 4  # a second more than a stream may be ahead of its player


@pytest.fixture(scope="module")
def champions(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Champions:
    return Champions(tmp_path_factory.mktemp("store"), database)


# --- the server -----------------------------------------------------------------------------------


@pytest.fixture
def following(champions: Champions, artifact: Artifact, tmp_path: Path) -> Iterator[Server]:
    """A server that follows the champion."""
    champions.promote(artifact.folder)
    options = ("--follow", "0.2", "--max-sessions", "11")
    with server(
        Path(champions.alias), tmp_path, *options, MLFLOW_TRACKING_URI=champions.store
    ) as running:
        yield running


def status(running: Server) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(running.get("/ready")[1])
    return answer


def test_ten_open_streams_end_on_their_model_and_later_ones_get_the_new_one(
    following: Server,
    champions: Champions,
    engine: Engine,
    artifact: Artifact,
    other_artifact: Artifact,
) -> None:
    first, clients = status(following), [following.connect() for _ in range(10)]
    assert first["artifact"] == engine.digest and first["behind"] is None
    with ThreadPoolExecutor(10) as pool:
        begun = list(pool.map(begin, clients, [SECONDS] * 10, range(10)))
        second = champions.promote(other_artifact.folder)
        assert settled(lambda: status(following)["version"] == second, 30)
        assert following.figure("omniforcing_models") == 2
        assert following.figure("omniforcing_sessions") == 10
        with following.connect() as later:
            other = Engine(other_artifact)
            assert play(later, SECONDS, seed=0)[0] == file_of(other, SECONDS, seed=0) != begun[0]
        for client in clients:
            say(client, "position", seconds=600)
        ends = list(pool.map(take, clients))
    for seed, (client, media, (rest, messages)) in enumerate(
        zip(clients, begun, ends, strict=True)
    ):
        client.close()
        assert messages[-1]["reason"] == "ended"
        assert media + rest == file_of(engine, SECONDS, seed)
    assert settled(lambda: following.figure("omniforcing_models") == 1)
    assert f"new streams are made by {second}" in following.log.read_text()

    third = champions.promote(artifact.folder, damaged=True)
    assert settled(lambda: status(following)["behind"], 30)
    answer = status(following)
    assert third in answer["behind"] and "file.altered" in answer["behind"]
    assert answer["ready"] and answer["version"] == second
    assert following.figure("omniforcing_behind") == following.figure("omniforcing_models") == 1
    log = following.log.read_text()
    assert f"still streaming with {second}" in log and "streaming.json" in log
    with following.connect() as last:
        assert play(last, 1, seed=3)[0] == file_of(other, 1, seed=3)

    fourth = champions.promote(artifact.folder)
    assert settled(lambda: status(following)["version"] == fourth, 30)
    assert status(following)["behind"] is None
    assert following.figure("omniforcing_behind") == 0
    assert following.figure("omniforcing_rollovers_total") == 2


# --- one look -------------------------------------------------------------------------------------


@pytest.fixture
def opened(engine: Engine) -> Iterator[Service]:
    service = Service(ServedModel.of(engine, "models:/tiny/0"), Limits(), [])
    yield service
    service.close()


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server's log says."""
    return [record.getMessage() for record in caplog.records if record.name == "omniforcing.serve"]


class Looks:
    """A rollover of a service, and the folders that it opened."""

    def __init__(self, alias: Alias, service: Service, seconds: float = 60) -> None:
        self.service, self.tried = service, list[Path]()
        self._rollover = Rollover(alias, seconds, self._load)

    def _load(self, folder: Path) -> Engine:
        self.tried.append(folder)
        return Engine(folder)

    def look(self) -> None:
        asyncio.run(self._rollover.look(self.service))


def test_a_model_that_cannot_be_opened_is_told_once_and_tried_later(
    champions: Champions, artifact: Artifact, opened: Service, caplog: pytest.LogCaptureFixture
) -> None:
    version = champions.promote(artifact.folder, damaged=True)
    before, looks = opened.model, Looks(Alias(champions.alias, champions.store), opened)
    for _ in range(3):
        looks.look()
    assert opened.model is before and len(looks.tried) == 1
    assert opened.behind is not None and version in opened.behind
    assert len(told(caplog)) == 1 and "streaming.json" in caplog.text
    impatient = Looks(Alias(champions.alias, champions.store), opened, seconds=1e-9)
    for _ in range(3):
        impatient.look()
    assert len(impatient.tried) == 3 and len(told(caplog)) == 2


def test_a_fault_of_ours_leaves_the_model_and_its_traceback_in_the_log(
    champions: Champions, artifact: Artifact, opened: Service, caplog: pytest.LogCaptureFixture
) -> None:
    champions.promote(artifact.folder)

    def load(_: Path) -> Engine:
        raise MemoryError("no room for another")

    before = opened.model
    asyncio.run(Rollover(Alias(champions.alias, champions.store), 60, load).look(opened))
    assert opened.model is before and opened.behind is not None
    assert "serving.fault" in opened.behind and "no room for another" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda champions: Alias(champions.alias, "http://127.0.0.1:1"), "tracking.no-mlflow"),
        (lambda champions: Alias("models:/tiny@nobody", champions.store), "tracking.unknown-model"),
    ],
    ids=["store down", "alias gone"],
)
def test_an_alias_that_cannot_be_looked_up_leaves_the_model(
    champions: Champions,
    opened: Service,
    spoil: Callable[[Champions], Alias],
    code: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, looks = opened.model, Looks(spoil(champions), opened)
    for _ in range(2):
        looks.look()
    assert opened.model is before and not looks.tried
    assert opened.behind is not None and code in opened.behind
    assert len(told(caplog)) == 1


def test_a_look_while_others_stream_sets_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that reads the environment meanwhile could crash."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    bound_always()
    before = dict(os.environ)
    with bounded("sqlite:///nowhere.db"):
        assert dict(os.environ) == before


def test_the_model_before_is_freed_at_once(champions: Champions, artifact: Artifact) -> None:
    """Not by the garbage collector, for a GPU has no room for it meanwhile."""
    service = Service(Engine(artifact), Limits(), [])
    before = weakref.ref(service.model.engine)
    champions.promote(artifact.folder)
    gc.collect()
    gc.disable()
    try:
        Looks(Alias(champions.alias, champions.store), service).look()
        assert before() is None
    finally:
        gc.enable()
        service.close()


def test_a_replica_that_starts_takes_the_champion_or_else_what_was_deployed(
    champions: Champions, artifact: Artifact, other_artifact: Artifact
) -> None:
    deployed = (champions.promote(artifact.folder), artifact.folder)
    rollover = Rollover(Alias(champions.alias, champions.store), 60, Engine)
    newer = champions.promote(other_artifact.folder)
    assert rollover.first(deployed).version == newer
    champions.promote(artifact.folder, damaged=True)
    model = rollover.first(deployed)
    assert model.version == deployed[0] and model.engine.artifact.folder == artifact.folder
    with refuses("file.altered", "streaming.json"):
        rollover.first()


# --- what cannot be followed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "fact"),
    [
        (["--follow", "5"], "serving.nothing-to-follow", "models:/NAME@ALIAS"),
        (["--follow", "5", "--artifact", "models:/tiny/3"], "serving.nothing-to-follow", "tiny/3"),
        (["--follow", "0", "--artifact", Champions.alias], "option.out-of-range", "0"),
        (["--follow", "nan", "--artifact", Champions.alias], "option.out-of-range", "nan"),
    ],
)
def test_what_is_no_alias_that_moves_is_one_sentence(
    words: list[str], code: str, fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["serve", "--port", "0", *words])
    assert end.value.code == 2
    refused(capsys.readouterr().err, code, fact)
