"""Adapters from stage to stage: what is published, what goes on from it, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from omniforcing.core.config import ConfigError
from omniforcing.core.environment import DATA_ROOT_VARIABLE
from omniforcing.core.layout import clip_latents
from omniforcing.distill.sampling import full_view
from omniforcing.model.transformer import DualStream
from omniforcing.model.weights.lora import ADAPTER_FILE, read_lora
from omniforcing.model.weights.student import load_model, save_model
from omniforcing.pipeline.config import load_config
from omniforcing.pipeline.declaration import read_declaration
from omniforcing.pipeline.stage import Stage
from omniforcing.pipeline.stages.shared.adapters import publish_adapter
from omniforcing.pipeline.stages.shared.training import open_causal_student, open_roles
from omniforcing.training.adapters import AdaptedStream
from tests.support.ray_cluster import ROOT
from tests.support.refusals import refuses
from tests.support.tiny_adapters import randomised
from tests.support.tiny_models import GRID, TOLERANCE, difference, features, latents, tiny_model

pytestmark = pytest.mark.extended

COUNTS = clip_latents(1)
ADAPTERS = [f"{name}.adapter.rank=2" for name in ("bidirectional_dmd", "causal_ode")]
ADAPTERS += ["self_forcing.adapter.rank=2", "self_forcing.critic_adapter.rank=3"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of preset smoke's outputs, with a tiny teacher."""
    monkeypatch.setenv(DATA_ROOT_VARIABLE, str(tmp_path))
    folder = tmp_path / "data" / "smoke"
    (folder / "teacher").mkdir(parents=True)
    save_model(tiny_model(), folder / "teacher")
    return folder


def stage(name: str, *overrides: str) -> Stage:
    config = load_config(["preset=smoke", *ADAPTERS, *overrides], ROOT)
    nothing: Any = None  # no stage of these tests logs
    return Stage(name, config, ROOT, read_declaration(name, ROOT, "smoke"), Path(), nothing)


def velocity(model: DualStream) -> Any:
    view = full_view(model, COUNTS, GRID)
    with torch.no_grad():
        return model(latents(COUNTS), 0.5, model.cache_text(features()), view)


def test_each_stage_goes_on_from_the_adapter_of_the_one_before(data: Path) -> None:
    first = stage("bidirectional_dmd")
    student, teacher, critic = open_roles(first, first.config.bidirectional_dmd)
    assert isinstance(student, AdaptedStream) and student.core is teacher.core
    assert not isinstance(critic, AdaptedStream) and critic.core is not teacher.core
    publish_adapter(first, randomised(student))
    expected = velocity(student)
    merged = load_model(data / "bidirectional_dmd", 0)
    assert difference(velocity(merged), expected) < TOLERANCE

    second = stage("causal_ode")
    student = open_causal_student(second, second.config.causal_ode)
    assert isinstance(student, AdaptedStream) and len(student.sinks) == 4
    assert difference(velocity(student), expected) < TOLERANCE
    with torch.no_grad():
        student.sinks.fill_(0.5)
    publish_adapter(second, student)

    third = stage("self_forcing")
    source = third.config.self_forcing.init.value
    student, teacher, critic = open_roles(third, third.config.self_forcing, source)
    assert isinstance(student, AdaptedStream) and isinstance(critic, AdaptedStream)
    assert student.core is teacher.core is critic.core
    assert torch.equal(student.sinks, torch.full_like(student.sinks, 0.5))
    assert difference(velocity(student), expected) < TOLERANCE
    assert difference(velocity(critic), velocity(teacher)) == 0
    facts = read_lora(data / "causal_ode" / ADAPTER_FILE).facts
    assert facts["base"] == "smoke/teacher" and facts["base_sha256"] == student.digest


def test_another_teacher_whole_weights_and_another_rank_are_refused(data: Path) -> None:
    first = stage("bidirectional_dmd")
    publish_adapter(first, open_roles(first, first.config.bidirectional_dmd)[0])  # type: ignore
    second = stage("causal_ode")
    other = tiny_model()
    with torch.no_grad():
        other.core.proj_in.bias.add_(1)
    save_model(other, data / "teacher")
    with refuses("adapter.other-base", ADAPTER_FILE):
        open_causal_student(second, second.config.causal_ode)
    (data / "bidirectional_dmd" / ADAPTER_FILE).unlink()
    with refuses("adapter.no-adapter", "bidirectional_dmd", "causal_ode.adapter"):
        open_causal_student(second, second.config.causal_ode)
    large = stage("bidirectional_dmd", "bidirectional_dmd.critic_adapter.rank=33")
    with refuses("adapter.rank-too-large", "bidirectional_dmd.critic_adapter", "33"):
        open_roles(large, large.config.bidirectional_dmd)
    for overrides in (["causal_ode.adapter.rank=4"], ["bidirectional_dmd.adapter=null"]):
        with pytest.raises(ConfigError) as refused:
            stage("causal_ode", *overrides)
        assert "causal_ode.adapter" in str(refused.value)
