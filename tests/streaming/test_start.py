"""What a process may load before it works: nothing heavy that it does not use.

Imports cost more processor time than a short stream; each list names what its command may hold.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from omniforcing.streaming.artifact import Artifact

# Packages, and parts of them, that take a tenth of a second or more to load.
HEAVY = {
    *("torch", "torch._dynamo", "sympy", "diffusers", "transformers", "huggingface_hub", "peft"),
    *("lightning", "torchmetrics", "torchaudio", "mlflow", "sqlalchemy", "pandas", "pyarrow"),
    *("ray", "dvc", "webdataset", "scipy", "matplotlib", "PIL", "av", "tokenizers"),
}
# Heavy packages that the import of a stage's module may load; its run loads what it then needs.
TENSORS = {"torch", "av"}
TRAINED = {"torch", "sympy", "av"}
STAGES = {
    "clips": TENSORS,
    "shards": TENSORS,
    "codec": TENSORS,
    "latents": TENSORS,
    "teacher": TRAINED,
    "bidirectional_dmd": TRAINED,
    "trajectories": TRAINED,
    "causal_ode": TRAINED,
    "self_forcing": TRAINED,
    "evaluate": TENSORS,
    "export": {"torch"},
    "causal_decoder": TRAINED,
}


def heavy_after(code: str) -> set[str]:
    """Heavy packages in a new interpreter after it has run ``code``."""
    script = f"{code}\nimport sys; print('held', *({HEAVY!r} & set(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(answer.stdout.splitlines()[-1].split()[1:])


def test_the_lists_name_every_stage() -> None:
    folder = Path(__file__).parents[2] / "src/omniforcing/pipeline/stages"
    assert set(STAGES) == {file.stem for file in folder.glob("*.py")} - {"__init__"}


@pytest.mark.extended
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_loads_nothing_heavy_that_it_does_not_use(stage: str) -> None:
    assert heavy_after(f"import omniforcing.pipeline.stages.{stage}") <= STAGES[stage]


@pytest.mark.parametrize("words", [["--help"], ["config"], ["stream", "--help"]])
def test_a_command_without_a_model_loads_nothing_heavy(words: list[str]) -> None:
    code = f"""
from omniforcing.cli import main
try:
    main({words!r})
except SystemExit as end:
    assert not end.code
"""
    assert heavy_after(code) == set()


@pytest.mark.extended
def test_a_stream_loads_torch_a_tokenizer_and_the_video_library_alone(
    artifact: Artifact, tmp_path: Path
) -> None:
    words = ["stream", "--artifact", str(artifact.folder), "--prompt", "a red ball bounces"]
    code = f"""
from omniforcing.cli import main
try:
    main({[*words, "--seconds", "1", "--out", str(tmp_path / "clip.mp4")]!r})
except SystemExit as end:
    assert not end.code
"""
    assert heavy_after(code) == {"torch", "av", "tokenizers"}
