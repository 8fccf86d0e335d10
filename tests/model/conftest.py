"""Both layouts of rotary embeddings and every generation of LTX-2, for the tests of the model."""

from typing import Any

import pytest

from benchmarks.gpu.networks import GENERATIONS


@pytest.fixture(params=["split", "interleaved"])
def rope(request: pytest.FixtureRequest) -> str:
    """Both layouts of rotary embeddings."""
    return str(request.param)


@pytest.fixture(params=GENERATIONS)
def generation(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What sets a release's architecture apart."""
    return GENERATIONS[request.param]
