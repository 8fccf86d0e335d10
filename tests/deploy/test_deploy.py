"""Containers and the dashboard fit the package, its commands and its metrics."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from prometheus_client.parser import text_string_to_metric_families
from yaml import safe_load

from omniforcing.cli.main import omniforcing
from omniforcing.core.environment import OTHERS, OURS
from omniforcing.serving.gauges import Gauges
from omniforcing.serving.protocol.messages import DEFAULT_PORT

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = [ROOT / "compose.yaml", ROOT / "deploy" / "compose.gpu.yaml"]


def instructions(name: str) -> list[str]:
    """What follows an instruction of the Dockerfile, lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} +(.+)$", joined, flags=re.MULTILINE)


def options(words: list[str]) -> dict[str, Any]:
    """Options of a command of ours, read by itself; it refuses what it does not know."""
    name, *given = words
    command = omniforcing.commands[name]
    return command.make_context(name, given).params


# --- the image ---


def test_the_linter_has_nothing_to_say() -> None:
    linter = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    answer = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout) == (0, ""), answer.stderr


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in instructions("COPY"):
        for name in shlex.split(line)[:-1]:
            assert (ROOT / name).exists() and f"!{name}" in ignored, name


def test_the_image_fits_the_package() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    defaults = dict(line.split("=", 1) for line in instructions("ARG"))
    for extra in defaults["EXTRAS"].split(","):
        assert f"\n{extra} = [" in project
    low, high = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', project).groups()  # type: ignore[union-attr]
    assert int(low) <= int(defaults["PYTHON"].removeprefix("3.")) < int(high)
    (command,) = map(json.loads, instructions("CMD"))
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["omniforcing"]
    assert options(command)["port"] == DEFAULT_PORT == int(instructions("EXPOSE")[0])
    assert options(command)["host"] == "0.0.0.0"
    assert f":{DEFAULT_PORT}/ready" in instructions("HEALTHCHECK")[0]


@pytest.mark.parametrize(("torch", "index"), [("cpu", "/whl/cpu"), ("cuda", "pypi"), ("rocm", "")])
def test_the_build_argument_chooses_the_build_of_torch(torch: str, index: str) -> None:
    run = instructions("RUN")[-1]
    script = run.partition("pip install")[0] + "echo $index"
    shell = subprocess.run(
        ["sh", "-c", script], env={"TORCH": torch}, capture_output=True, text=True
    )
    assert (shell.returncode == 0) is bool(index)
    assert index in shell.stdout and (index or "rocm" in shell.stderr)


# --- compose ---


def services(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = safe_load(path.read_text())["services"]
    return found


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_the_server_of_compose_is_a_command_of_ours(path: Path) -> None:
    server = services(path)["server"]
    given = options(server["command"])
    assert given["port"] == DEFAULT_PORT and given["host"] == "0.0.0.0"
    if "build" in server:
        arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, flags=re.MULTILINE))
        assert server["build"]["args"].keys() <= arguments
        assert server["environment"].keys() <= OURS.keys() | OTHERS.keys()
        assert server["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"]
        grace = int(server["stop_grace_period"].removesuffix("s"))
        assert grace > given["drain_seconds"]


def test_an_artifact_of_the_environment_is_taken_and_an_empty_one_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMNIFORCING_ARTIFACT", "")
    assert options(["serve"])["artifact"] is None
    monkeypatch.setenv("OMNIFORCING_ARTIFACT", "org/name")
    assert options(["serve"])["artifact"] == Path("org/name")
    assert options(["serve", "--artifact", "other"])["artifact"] == Path("other")


def test_mlflow_of_compose_is_the_tested_version_and_takes_its_options() -> None:
    found = services(COMPOSE[0])
    mlflow, server = found["mlflow"], found["server"]
    pin = re.search(r"^mlflow==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pin and mlflow["image"].endswith(f":v{pin[1]}")
    from mlflow.cli import cli

    program, name, *words = shlex.split(mlflow["command"])
    assert (program, name) == ("mlflow", "server")
    params = click.Context(cli).command.commands["server"].make_context(name, words).params  # type: ignore[attr-defined]
    assert server["environment"]["MLFLOW_TRACKING_URI"] == f"http://mlflow:{params['port']}"
    assert f"mlflow:{params['port']}" in params["allowed_hosts"].split(",")
    volumes = {name for service in found.values() for name in service["volumes"]}
    assert {name.partition(":")[0] for name in volumes} == safe_load(COMPOSE[0].read_text())[
        "volumes"
    ].keys()


# --- the dashboard ---


def test_the_dashboard_asks_for_the_metrics_of_serve_and_for_all_of_them() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "omniforcing.json").read_text())
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    asked = set(re.findall(r"omniforcing_\w+", " ".join(expressions)))
    families = list(text_string_to_metric_families(Gauges().text().decode()))
    ends = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    exposed = {
        family.name + end
        for family in families
        if not family.name.endswith("_created")
        for end in ends[family.type]
    }
    assert asked == exposed


def test_labels_that_the_dashboard_groups_by_exist() -> None:
    text = (ROOT / "deploy" / "grafana" / "omniforcing.json").read_text()
    gauges = Gauges()
    gauges.ended.labels("ended").inc()
    gauges.refused.labels("busy").inc()
    for label, metric in re.findall(r"sum by \((\w+)\) \(\w+\((omniforcing_\w+)", text):
        assert label == "instance" or re.search(
            rf'^{metric}{{{label}="', gauges.text().decode(), re.MULTILINE
        ), (metric, label)
