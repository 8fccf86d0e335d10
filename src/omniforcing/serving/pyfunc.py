"""The artifact as an MLflow model ("models from code"): MLflow runs this file, nothing is pickled.

A row of the input is ``prompt`` (text), ``seconds`` (default 8) and ``seed`` (default 0). Rows come
as a table, a list of dictionaries, one dictionary, or a dictionary of columns, such as
``{"prompt": ["a", "b"]}``, in which a single value holds for every row.

``predict(rows)`` returns a table of one column, ``mp4``: the whole clip of each row, bytes.
``predict_stream(row)`` yields a dictionary per block as soon as it is decoded: ``block`` (index),
``first_frame``, ``frames``, ``first_sample``, ``samples`` (counts) and ``mp4`` (bytes). The ``mp4``
values in order are one fragmented MP4, a fragment per block, that plays while it grows. A last
dictionary without frames holds the end of the sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import mlflow.models
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, Schema

from omniforcing.core.errors import OmniForcingError

if TYPE_CHECKING:
    import pandas

    from omniforcing.streaming.engine import Engine

DEFAULTS = {"seconds": 8.0, "seed": 0}
INPUT_EXAMPLE = {"prompt": ["a red ball bounces high on the floor"], "seconds": [2.0], "seed": [0]}
SIGNATURE = mlflow.models.ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.string, "prompt"),
            ColSpec(DataType.double, "seconds", required=False),
            ColSpec(DataType.long, "seed", required=False),
        ]
    ),
    outputs=Schema([ColSpec(DataType.binary, "mp4")]),
)


def rows_of(model_input: Any) -> list[dict[str, Any]]:
    """Read requests from a table, a dictionary or a list of dictionaries.

    Raises:
        OmniForcingError: if there is no prompt column, or columns have different lengths.
    """
    import pandas as pd

    if isinstance(model_input, dict):
        model_input = _rows_of_columns(model_input)
    table = pd.DataFrame(model_input)
    if "prompt" not in table:
        raise OmniForcingError(
            "serving.wrong-columns",
            f"the input has the columns {list(table)}; "
            "a row has prompt, and optionally seconds and seed",
        )
    for name, default in DEFAULTS.items():
        table[name] = (
            (table[name] if name in table else pd.Series(default, table.index))
            .fillna(default)
            .astype(type(default))
        )
    return table[["prompt", *DEFAULTS]].to_dict(orient="records")


def _rows_of_columns(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Turn a dictionary into rows: one row, or as many as its lists have entries."""
    import numpy as np
    import pandas as pd

    several = (list, tuple, np.ndarray, pd.Series)
    lists = {name: list(value) for name, value in columns.items() if isinstance(value, several)}
    lengths = {name: len(value) for name, value in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise OmniForcingError(
            "serving.wrong-columns",
            f"the input's columns have different lengths ({told}); give each a value per clip",
        )
    count = next(iter(lengths.values()), 1)
    rows = []
    for index in range(count):
        rows.append({**columns, **{name: values[index] for name, values in lists.items()}})
    return rows


class StreamingModel(PythonModel):
    """Model that makes clips and streams with an artifact."""

    # The signature is explicit; without this MLflow warns at every load that it cannot infer one
    # from type hints.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Open the artifact that was logged with the model and verify its checksums."""
        from pathlib import Path

        from omniforcing.streaming.engine import Engine

        self.engine: Engine = Engine(Path(context.artifacts["artifact"]))

    def predict(self, model_input: Any) -> pandas.DataFrame:
        """Make whole clips: a table with the column ``mp4``, a row per row of the input."""
        import pandas as pd

        clips = [
            b"".join(piece["mp4"] for piece in self._pieces(row)) for row in rows_of(model_input)
        ]
        return pd.DataFrame({"mp4": clips})

    def predict_stream(self, model_input: Any) -> Iterator[dict[str, Any]]:
        """Yield the pieces of one clip block by block; MLflow itself refuses several rows."""
        (row,) = rows_of(model_input)
        return self._pieces(row)

    def _pieces(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        from omniforcing.media.mux import Muxer, OutputBuffer

        sink, settings = OutputBuffer(), self.engine.settings
        size, mark = (settings.height, settings.width), self.engine.mark
        muxer = Muxer(sink, *size, settings.sample_rate, mark=mark)

        def piece(block: int, frames: int, samples: int) -> dict[str, Any]:
            counts = {"first_frame": muxer.frames - frames, "frames": frames}
            counts |= {"first_sample": muxer.samples - samples, "samples": samples}
            return {"block": block, **counts, "mp4": sink.take()}

        with self.engine.stream(**row) as stream:
            for chunk in stream:
                muxer.add(chunk)
                yield piece(chunk.block, len(chunk.frames), chunk.samples.shape[1])
        muxer.close()
        yield piece(chunk.block, 0, 0)


mlflow.models.set_model(StreamingModel())
