"""The MLflow model: whole clips, a stream in pieces, rows in any of MLflow's shapes."""

from __future__ import annotations

import io
import threading
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest

from omniforcing.serving import pyfunc
from omniforcing.streaming.artifact import Artifact
from tests.support.refusals import refuses

pytestmark = pytest.mark.extended

ROW = {"prompt": "a red ball bounces", "seconds": 1.0, "seed": 2}


@pytest.fixture(scope="module")
def model(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow") / "model"
    mlflow.pyfunc.save_model(
        folder,
        python_model=pyfunc.__file__,
        artifacts={"artifact": str(artifact.folder)},
        signature=pyfunc.SIGNATURE,
        input_example=pyfunc.INPUT_EXAMPLE,
        pip_requirements=["torch"],
    )
    return mlflow.pyfunc.load_model(str(folder))


def frames_of(data: bytes) -> int:
    with av.open(io.BytesIO(data)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_predict_gives_a_whole_clip_per_row(model: Any) -> None:
    clips = model.predict(pd.DataFrame([ROW, {**ROW, "seconds": 2.0}]))["mp4"]
    assert [frames_of(clip) for clip in clips] == [25, 49]


@pytest.mark.parametrize("prompts", [["a red ball bounces"], ["a red ball bounces", "a blue ball"]])
def test_a_dictionary_of_columns_gives_a_clip_per_prompt(model: Any, prompts: list[str]) -> None:
    clips = model.predict({"prompt": prompts, "seconds": [1.0] * len(prompts)})["mp4"]
    assert [frames_of(clip) for clip in clips] == [25] * len(prompts)
    if len(prompts) == 2:
        assert clips[0] != clips[1]


def test_pieces_joined_are_the_whole_clip(model: Any) -> None:
    pieces = list(model.predict_stream(ROW))
    assert [piece["block"] for piece in pieces] == [0, 1, 1]
    assert [piece["frames"] for piece in pieces] == [1, 24, 0]
    assert sum(piece["samples"] for piece in pieces) == 16000
    joined = b"".join(piece["mp4"] for piece in pieces)
    assert joined == model.predict(pd.DataFrame([ROW]))["mp4"][0]


def test_seconds_and_seed_may_be_left_out(model: Any) -> None:
    piece = next(iter(model.predict_stream(pd.DataFrame({"prompt": ["a red ball bounces"]}))))
    assert piece["first_frame"] == 0


def test_the_model_carries_its_signature_and_input_example(model: Any) -> None:
    assert model.metadata.signature == pyfunc.SIGNATURE
    example = model.input_example
    assert set(example) == set(pyfunc.INPUT_EXAMPLE)
    piece = next(iter(model.predict_stream(example)))
    assert piece["block"] == 0 and piece["frames"] == 1


def test_a_stream_that_is_given_up_stops_computing(model: Any) -> None:
    pieces = model.predict_stream({**ROW, "seconds": 600.0})
    next(pieces)
    pieces.close()
    assert not [
        thread for thread in threading.enumerate() if thread.name.startswith("omniforcing-")
    ]


@pytest.mark.parametrize(
    "given", [ROW, [ROW], pd.DataFrame([ROW]), {**ROW, "seed": None, "seconds": 1}]
)
def test_rows_are_read_in_every_shape(given: Any) -> None:
    (row,) = pyfunc.rows_of(given)
    assert row["prompt"] == ROW["prompt"] and row["seconds"] == 1.0 and isinstance(row["seed"], int)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("wrap", [list, tuple, np.array, pd.Series])
def test_columns_are_rows(count: int, wrap: Any) -> None:
    rows = pyfunc.rows_of({"prompt": wrap(["a", "b"][:count]), "seconds": 2})
    assert [(row["prompt"], row["seconds"]) for row in rows] == [("a", 2.0), ("b", 2.0)][:count]


def test_columns_of_different_lengths_are_refused() -> None:
    with refuses("serving.wrong-columns", "prompt 2", "seconds 1"):
        pyfunc.rows_of({"prompt": ["a", "b"], "seconds": [1.0]})


def test_bad_rows_are_one_sentence(model: Any) -> None:
    with refuses("streaming.no-prompt"):
        list(model.predict_stream({**ROW, "prompt": ""}))
    with refuses("serving.wrong-columns", "text", "prompt"):
        pyfunc.rows_of({"text": "a red ball"})
