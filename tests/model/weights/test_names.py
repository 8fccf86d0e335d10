"""Names and shapes of the three releases, all tensors of all layers, against listings that the code
does not make.
"""

import json
import math
from pathlib import Path

import pytest

from benchmarks.published.transformer import FACTS, released_metadata
from omniforcing.model.weights.architecture import expected_shapes, from_metadata
from omniforcing.model.weights.checkpoint import open_checkpoint
from omniforcing.model.weights.command import summary
from omniforcing.model.weights.names import (
    OTHER_PARTS,
    TRANSFORMER,
    generation,
    to_diffusers,
    to_original,
)
from tests.support.tiny_checkpoints import (
    Listing,
    diffusers_tensors,
    released_tensors,
    save_hollow,
)

pytestmark = pytest.mark.extended

RELEASES = sorted(FACTS["counts"])


def named(shapes: Listing) -> dict[str, tuple[int, ...]]:
    return {to_diffusers(name): tuple(shape) for name, shape in shapes.items()}


def test_every_original_name_of_2_0_becomes_the_listed_diffusers_name() -> None:
    assert named(released_tensors("2.0")) == {
        name: tuple(shape) for name, shape in diffusers_tensors().items()
    }


@pytest.mark.parametrize("release", RELEASES)
def test_a_released_file_fills_the_model_of_its_metadata_tensor_by_tensor(release: str) -> None:
    """Every listed tensor finds its place in diffusers' own modules, with its shape, and no place
    stays empty.
    """
    theirs = named(released_tensors(release))
    expected = expected_shapes(
        from_metadata(released_metadata(release), theirs, "listing"), "listing"
    )
    assert theirs == expected
    tensors, parameters = FACTS["counts"][release]
    assert (len(expected), sum(map(math.prod, expected.values()))) == (tensors, parameters)
    assert generation(expected) == release


@pytest.mark.parametrize("release", RELEASES)
def test_names_go_to_diffusers_and_back_one_to_one(release: str) -> None:
    names = list(released_tensors(release))
    assert [to_original(to_diffusers(name)) for name in names] == names
    assert len({to_diffusers(name) for name in names}) == len(names)


def test_every_other_part_of_a_lightricks_file_is_known() -> None:
    listed = {part["example"]: prefix for prefix, part in FACTS["other_parts"].items()}
    assert {name: [p for p in OTHER_PARTS if name.startswith(p)] for name in listed} == {
        n: [p] for n, p in listed.items()
    }
    assert sum(part["count"] for part in FACTS["other_parts"].values()) == 4049 - 3510


@pytest.mark.parametrize("release", RELEASES)
def test_a_lightricks_file_of_real_size_opens_from_its_header_alone(
    release: str, tmp_path: Path
) -> None:
    shapes = {TRANSFORMER + name: shape for name, shape in released_tensors(release).items()}
    shapes |= {part["example"]: part["shape"] for part in FACTS["other_parts"].values()}
    metadata = {"config": json.dumps({"transformer": released_metadata(release)})}
    opened = open_checkpoint(save_hollow(tmp_path / "ltx-2.safetensors", shapes, metadata))
    assert opened.format == "original"
    assert opened.others == dict.fromkeys(FACTS["other_parts"], 1)
    config = opened.config
    assert (config["rope_type"], config["rope_double_precision"]) == ("split", True)
    assert (
        config["timestep_scale_multiplier"],
        config["cross_attn_timestep_scale_multiplier"],
    ) == (1000, 1000)
    assert config["use_prompt_embeddings"] == (release == "2.0")


def test_the_authors_student_of_real_size_opens_with_the_config_of_their_code(
    tmp_path: Path,
) -> None:
    shapes = {f"model.{name}": shape for name, shape in released_tensors("2.0").items()}
    opened = open_checkpoint(save_hollow(tmp_path / "student.safetensors", shapes, {}))
    config = opened.config
    assert opened.format == "omniforcing"
    assert (config["rope_type"], config["rope_double_precision"]) == ("interleaved", False)
    assert config["cross_attn_timestep_scale_multiplier"] == 1
    assert expected_shapes(config, "student") == named(released_tensors("2.0"))


@pytest.mark.parametrize(
    ("release", "billions"),
    [
        ("2.0", (13.042, 3.266, 2.569)),
        ("2.3", (13.124, 3.286, 2.578)),
        ("2.5", (13.123, 3.286, 2.578)),
    ],
)
def test_parameters_are_counted_per_stream(
    release: str, billions: tuple[float, ...], tmp_path: Path
) -> None:
    shapes = {TRANSFORMER + name: shape for name, shape in released_tensors(release).items()}
    metadata = {"config": json.dumps({"transformer": released_metadata(release)})}
    found = summary(open_checkpoint(save_hollow(tmp_path / "ltx-2.safetensors", shapes, metadata)))
    counted = tuple(found["parameters"][name] / 1e9 for name in ("video", "audio", "cross-modal"))
    assert counted == pytest.approx(billions, abs=6e-4)
    assert (found["tensors"], found["parameters"]["total"]) == tuple(FACTS["counts"][release])
    assert found["generation"] == release
