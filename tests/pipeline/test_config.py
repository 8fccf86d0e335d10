"""The whole configuration: every key documented and in range, every preset loads."""

import dataclasses
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from yaml import safe_load

from omniforcing.codec.config import Source
from omniforcing.core.config import (
    ConfigError,
    FieldError,
    Section,
    describe_keys,
    field_docstrings,
    flatten,
    to_dict,
)
from omniforcing.pipeline.config import BASE, Config, load_config
from omniforcing.pipeline.config_file import WRITE, check_config_file, write_config_file
from omniforcing.training.config import TrainerConfig, Weights
from tests.support.refusals import refuses

ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "preset").glob("*.yaml"))
SECTIONS = {f.name for f in dataclasses.fields(Config)} - {"preset", "cluster", "seed"}
KEYS = {key.key: key for key in describe_keys(Config())}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A project whose configuration may be spoilt."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    return tmp_path


def sections(section: Section) -> Iterator[Section]:
    yield section
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Section):
                yield from sections(item)


def test_every_key_has_a_docstring() -> None:
    for section in sections(Config()):
        names = {f.name for f in dataclasses.fields(section)}
        assert field_docstrings(type(section)).keys() == names, type(section)


def test_every_number_has_a_range_and_its_default_lies_within() -> None:
    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    for key in KEYS.values():
        several = isinstance(key.default, list) and any(map(is_number, key.default))
        if is_number(key.default) or several:
            assert key.legal, key.key


@pytest.mark.parametrize("section", list(sections(Config())), ids=lambda s: type(s).__name__)
def test_a_section_refuses_every_number_that_is_out_of_range(section: Section) -> None:
    for f in dataclasses.fields(section):
        default = getattr(section, f.name)
        if not f.metadata or isinstance(default, str):
            continue
        wrong: Any = math.inf
        if isinstance(default, list):
            wrong = [wrong] * len(default)
        for value in (wrong, [-math.inf] if isinstance(default, list) else -math.inf):
            with pytest.raises(FieldError) as caught:
                dataclasses.replace(section, **{f.name: value})
            assert caught.value.key.startswith(f.name)


# Numbers that are null by default, each with a value to start from.
OPTIONAL = {
    **{
        f"{stage}.muon_lr": Weights(0.1, 0.1)
        for stage in ("teacher", "bidirectional_dmd", "causal_ode", "self_forcing")
    },
    "bidirectional_dmd.critic_muon_lr": 0.1,
    "self_forcing.critic_muon_lr": 0.1,
    "cluster.shard_size": 1,
}
# What 0 means where it is legal: none of it, from the start, without, or uniform.
ZERO = {
    *("seed", "clips.duets", "clips.heldout", "clips.heldout_duets", "clips.max_reject_share"),
    *("codec.video.encoder_layers", "codec.video.decoder_layers", "teacher.text_dropout"),
    *("teacher.sampler.shift", "student.sinks", "student.context_noise", "self_forcing.steered"),
    *("evaluate.drift_clips", "causal_decoder.context", "causal_decoder.foreground_weight"),
    *("trainer.probes", "cluster.gpus", "cluster.restarts", "cluster.kuberay.keep_minutes"),
    *(
        f"{stage}.optim.{name}"
        for stage in ("teacher", "bidirectional_dmd", "causal_ode", "self_forcing")
        for name in ("steps", "warmup", "weight_decay", "betas", "ema")
    ),
    *(
        f"{stage}.sigma.{name}"
        for stage in ("teacher", "bidirectional_dmd", "self_forcing")
        for name in ("low", "shift")
    ),
    *(
        f"{stage}.guidance.{name}"
        for stage in ("teacher.sampler", "bidirectional_dmd", "self_forcing")
        for name in ("video", "audio")
    ),
}


def with_value(section: Any, key: str, value: Any) -> Any:
    """The section with one value changed, all around it built and checked anew."""
    name, _, rest = key.partition(".")
    if name.isdigit():
        items = list(section)
        items[int(name)] = with_value(items[int(name)], rest, value) if rest else value
        return items
    inner = with_value(getattr(section, name), rest, value) if rest else value
    return dataclasses.replace(section, **{name: inner})


def numbers(value: Any, key: str = "") -> Iterator[str]:
    """Dotted names of all numbers, those of lists by their index."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key
        return
    for name, item in items:
        yield from numbers(item, f"{key}.{name}" if key else name)


def test_every_number_refuses_what_makes_no_sense() -> None:
    """nan, infinity, beyond all measure, -1 and, but where it is reviewed above, 0."""
    config = Config()
    for key, start in OPTIONAL.items():
        config = with_value(config, key, start)
    found = list(numbers(to_dict(config)))
    assert len(found) > 120
    legal: dict[str, set[str]] = {"0": set(), "-1": set()}
    for key in found:
        for value in (math.nan, math.inf, -math.inf, 1e13, 10**400, -1, 0):
            try:
                with_value(config, key, value)
            except FieldError as error:
                assert error.key.split(".")[0].split("[")[0] in key
            else:
                name = ".".join(part for part in key.split(".") if not part.isdigit())
                legal[str(value)].add(name)
    # Shifts of noise levels alone may be negative: towards 0.
    assert {key.rpartition(".")[2] for key in legal["-1"]} == {"shift"}
    assert legal["0"] == ZERO


def test_pairs_are_ordered_and_shares_add_up() -> None:
    for stage in ("teacher", "bidirectional_dmd", "self_forcing"):
        with refuses("config.out-of-range", f"{stage}.sigma.low", "0.9", "high=0.1"):
            load_config([f"{stage}.sigma={{low: 0.9, high: 0.1}}"], ROOT)
    for shares in ((0.5, 0.4), (0.5, 0.6)):
        legs = ", ".join(f"{{share: {share}}}" for share in shares)
        with refuses("config.out-of-range", "codec.video.crops", "add up to 1"):
            load_config([f"codec.video.crops=[{legs}]"], ROOT)


def test_a_range_is_told_by_the_whole_key() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["self_forcing.optim.lr.audio=0"], ROOT)
    assert caught.value.code == "config.out-of-range"
    assert "self_forcing.optim.lr.audio" in str(caught.value)
    assert "above 0" in str(caught.value)


@pytest.mark.extended
def test_the_written_file_is_the_schema_and_says_so_when_it_is_stale(copy: Path) -> None:
    check_config_file(ROOT)
    written = safe_load((ROOT / "conf" / "config.yaml").read_text())
    assert written.pop("cluster") == "local"
    schema = to_dict(Config())
    schema.pop("cluster")
    assert written == schema
    path = copy / "conf" / "config.yaml"
    path.write_text(path.read_text().replace("preset: pocket", "preset: smoke"))
    check_config_file(copy)
    path.write_text(path.read_text().replace("Clips per tar", "Clips a tar"))
    with refuses("config.stale-file", "config.yaml", WRITE):
        check_config_file(copy)
    assert write_config_file(copy)
    assert not write_config_file(copy)
    assert load_config(root=copy).preset == "smoke"


def test_the_written_file_keeps_to_a_hundred_columns() -> None:
    lines = (ROOT / "conf" / "config.yaml").read_text().splitlines()
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_every_section_and_loads(name: str) -> None:
    written = safe_load((ROOT / "conf" / "preset" / f"{name}.yaml").read_text())
    assert set(written) - {BASE} == SECTIONS
    config = load_config(root=ROOT, preset=name)
    assert config.preset == name
    counts = config.clips.latent_counts
    assert config.student.table.count_for(counts) == config.horizon + 1


def test_the_three_presets_are_there_and_pocket_keeps_its_foundation() -> None:
    assert {"smoke", "pocket", "ltx2"} <= set(PRESETS)
    sources = {
        name: load_config(root=ROOT, preset=name).teacher.source
        for name in ("smoke", "pocket", "ltx2")
    }
    assert sources == {"smoke": Source.train, "pocket": Source.kept, "ltx2": Source.load}


@pytest.mark.parametrize("release", ["2.3", "2.5"])
def test_presets_of_later_releases_are_ltx2_but_for_what_the_release_decides(release: str) -> None:
    name = f"ltx{release.replace('.', '')}"
    ltx2, later = (flatten(to_dict(load_config(root=ROOT, preset=p))) for p in ("ltx2", name))
    assert {key: later[key] for key in later if later[key] != ltx2[key]} == {
        "preset": name,
        "codec.path": f"weights/LTX-{release}",
        "teacher.path": f"weights/LTX-{release}/transformer",
        "teacher.release": release,
        "teacher.sampler.steps": 30,
        "export.base_model": f"Lightricks/LTX-{release}",
    }


def test_a_base_is_one_preset_that_stands_alone(copy: Path) -> None:
    mine = copy / "conf" / "preset" / "mine.yaml"
    mine.write_text("base: smoke\nclips: {count: 40}\n")
    config = load_config(root=copy, preset="mine")
    smoke = load_config(root=copy, preset="smoke")
    assert (config.preset, config.clips.count) == ("mine", 40)
    assert (config.clips.heldout, config.student) == (smoke.clips.heldout, smoke.student)
    mine.write_text("base: smok\n")
    with refuses("config.unknown-preset", "'smok'", "'smoke'"):
        load_config(root=copy, preset="mine")
    mine.write_text("base: ltx23\n")
    with refuses("config.chained-base", mine, "ltx23", "ltx2"):
        load_config(root=copy, preset="mine")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "conf" / "cluster").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_cluster_loads(copy: Path, path: Path) -> None:
    config = copy / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("cluster: local", f"cluster: {path.stem}"))
    written = flatten(safe_load(path.read_text()))
    found = flatten(to_dict(load_config(root=copy).cluster))
    assert {key: found[key] for key in written} == written


def test_overrides_win_over_the_preset_and_the_preset_over_config_yaml(copy: Path) -> None:
    (copy / "conf" / "preset" / "mine.yaml").write_text("clips: {count: 5, heldout: 2}\n")
    config = load_config(["clips.count=9", "teacher.sampler.guidance.audio=4.5"], copy, "mine")
    assert (config.clips.count, config.clips.heldout) == (9, 2)
    assert config.clips.seconds == Config().clips.seconds
    assert config.teacher.sampler.guidance.audio == 4.5
    assert load_config(["preset=mine"], copy).clips.count == 5


@pytest.mark.parametrize(
    ("override", "code", "facts"),
    [
        ("teacher.optim.learning_rate=1", "config.unknown-key", ("the command line", "teacher.")),
        ("clips.width=100", "config.out-of-range", ("clips.width", "100", "multiple of 32")),
        ("clips.source=folder", "config.missing-value", ("clips.folder",)),
        ("clips.heldout=24", "config.out-of-range", ("clips.heldout", "24", "count=24")),
        ("student.layout=papers", "config.out-of-range", ("prefix, merged or thirds",)),
        ("student.sigmas=[0.9,0.5]", "config.out-of-range", ("student.sigmas", "start at 1.0")),
        ("student.sigmas=[1.0,0.5,0.5]", "config.out-of-range", ("student.sigmas", "fall")),
        ("student.sigmas=[]", "config.out-of-range", ("student.sigmas",)),
        ("student.window=9", "config.out-of-range", ("student.window", "9")),
        ("student.stabiliser=tanh", "config.wrong-type", ("student.stabiliser", "tanh_gate")),
        ("student.stabiliser=none", "config.out-of-range", ("student.sinks",)),
        ("codec.source=load", "config.missing-value", ("codec.path",)),
        ("teacher.source=load", "config.missing-value", ("teacher.path",)),
        ("teacher.sigma.low=1", "config.out-of-range", ("teacher.sigma.low", "below 1")),
        ("teacher.optim.betas=[0.9]", "config.out-of-range", ("teacher.optim.betas", "two")),
        ("causal_decoder.context=7", "config.out-of-range", ("causal_decoder.latents", "14")),
        ("cluster.shard_size=2", "config.out-of-range", ("cluster.shard_size", "workers=1")),
        ("cluster.cpus=0", "config.out-of-range", ("cluster.cpus", "above 0")),
        ("cluster.jobs=here", "config.out-of-range", ("cluster.jobs", "here", "http://")),
        ("cluster.data_root=here", "config.out-of-range", ("cluster.data_root", "absolute")),
        ("preset=huge", "config.unknown-preset", ("huge", "pocket")),
        ("cluster=moon", "config.unknown-cluster", ("moon", "local")),
        ("--clips.count=3", "config.bad-override", ("--clips.count=3", "key.subkey=value")),
        ("clips.count", "config.bad-override", ("clips.count", "key.subkey=value")),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(
    override: str, code: str, facts: tuple[str, ...]
) -> None:
    with refuses(code, *facts):
        load_config([override], ROOT, preset=None if override.startswith("preset") else "smoke")


def test_a_mistake_in_a_file_names_the_file(copy: Path) -> None:
    preset = copy / "conf" / "preset" / "smoke.yaml"
    preset.write_text("clips: {cuont: 3}\n")
    with refuses("config.unknown-key", "conf/preset/smoke.yaml", "'clips.cuont'", "'clips.count'"):
        load_config(root=copy, preset="smoke")
    preset.write_text("clips: {count: [\n")
    with refuses("config.not-yaml", "smoke.yaml"):
        load_config(root=copy, preset="smoke")


@pytest.mark.parametrize(
    ("accelerator", "there", "device"),
    [("auto", True, "cuda"), ("gpu", True, "cuda"), ("cpu", True, "cpu"), ("auto", False, "cpu")],
)
def test_a_gpu_is_used_when_there_is_one_and_it_is_allowed(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, there: bool, device: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    assert TrainerConfig(accelerator=accelerator).device == device


def test_a_gpu_that_is_asked_for_and_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with refuses("device.no-cuda", "trainer.accelerator"):
        _ = TrainerConfig(accelerator="gpu").device


def test_no_interpolation_stands_in_files_that_dvc_tracks() -> None:
    for path in (ROOT / "conf").rglob("*.yaml"):
        lines = [line.split("#")[0] for line in path.read_text().splitlines()]
        assert not any("${" in line for line in lines), path
