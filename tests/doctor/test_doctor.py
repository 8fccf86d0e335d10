"""``omniforcing doctor``: what is there is listed, what is wrong is a sentence and exit code 1."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from omniforcing.cli import main
from omniforcing.doctor import machine, package
from omniforcing.doctor.finding import Finding
from omniforcing.doctor.report import page
from omniforcing.pocket import foundation

ROOT = Path(__file__).parents[2]
AREAS = ["versions", "kept files", "codecs", "devices", "ports", "folders", "variables"]


def examined(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code of the command, and its findings by name."""
    with pytest.raises(SystemExit) as end:
        main(["doctor", "--json"])
    answer = json.loads(capsys.readouterr().out)
    code = int(end.value.code or 0)
    assert answer["ok"] is (code == 0)
    return code, {finding["name"]: finding for finding in answer["findings"]}


def named(findings: Iterable[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_what_is_there_is_listed_by_area(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    _, findings = examined(capsys)
    areas = [finding["area"] for finding in findings.values()]
    assert list(dict.fromkeys(areas)) == AREAS
    assert findings["python"]["state"] == "ok"
    assert findings["torch"]["value"].endswith(("for CPUs", package.torch_build()))
    assert "libx264" in findings["encoders"]["value"] and findings["encoders"]["state"] == "ok"
    for part in foundation.PARTS:
        assert findings[part]["state"] == "ok" and "verified" in findings[part]["value"]
    for name in ("diffusers", "mlflow", "lightning", "ray", "dvc", "uvicorn"):
        assert findings[name]["value"][0].isdigit()


def test_it_loads_nothing_heavy_but_the_video_library() -> None:
    heavy = {"torch", "diffusers", "transformers", "mlflow", "ray", "dvc", "lightning", "numpy"}
    code = f"""
import sys
from omniforcing.doctor.report import report
report()
print(*sorted({heavy!r} & set(sys.modules)))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] in ("", "numpy")  # PyAV's own


def test_a_damaged_kept_file_is_wrong_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(foundation.KEPT, tmp_path / "kept")
    (tmp_path / "kept" / "teacher" / "sinks.safetensors").write_bytes(b"x")
    (tmp_path / "kept" / "codec" / "codec.json").unlink()
    monkeypatch.setattr(foundation, "KEPT", tmp_path / "kept")
    code, findings = examined(capsys)
    assert code == 1
    for part, file in (("teacher", "sinks.safetensors"), ("codec", "codec.json")):
        assert findings[part]["state"] == "wrong"
        assert file in findings[part]["fault"] and "install omniforcing" in findings[part]["fault"]
    with pytest.raises(SystemExit):
        main(["doctor"])
    wrong = capsys.readouterr().out.partition("what is wrong")[2]
    assert "teacher: " in wrong and "codec: " in wrong


def test_a_missing_package_and_another_version_tell_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {("av", ""), ("no-such-package", ""), ("no-such-server", "serve")}
    monkeypatch.setattr(package, "requirements", lambda: wanted)
    (tmp_path / "constraints.txt").write_text("av==0.1\n")
    found = list(package.versions(tmp_path))
    assert named(found, "av").state == "note"
    assert "0.1" in str(named(found, "av").fault)
    assert named(found, "no-such-package").state == "wrong"
    assert "pip install 'omniforcing'" in str(named(found, "no-such-package").fault)
    assert named(found, "no-such-server").state == "note"
    assert "'omniforcing[serve]'" in str(named(found, "no-such-server").fault)


def test_the_declared_packages_are_those_of_the_extras_for_users() -> None:
    assert {("torch", ""), ("uvicorn", "serve"), ("ray", "pipeline")} <= package.requirements()
    assert "pytest" not in {name for name, _ in package.requirements()}


def test_codecs_that_ffmpeg_lacks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert package.missing_codecs(["h264", "no-such-codec"], "r") == ["no-such-codec"]
    monkeypatch.setattr(package, "NEEDED_CODECS", {"w": ("libx264", "nonsense"), "r": ("aac",)})
    encoders = named(package.codecs(), "encoders")
    assert encoders.state == "wrong" and encoders.value == "libx264"
    assert "nonsense" in str(encoders.fault) and "pip install" in str(encoders.fault)


def test_a_port_in_use_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(machine, "DEFAULT_PORT", port)
        found = named(machine.ports(), "omniforcing serve")
        assert found.state == "note" and f"port {port} in use" in str(found.fault)
    assert machine.port_fault(port) is None


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named(machine.folders(tmp_path, tmp_path / "later"), "outputs").state == "ok"
    assert named(machine.folders(None, Path("/proc")), "outputs").state == "wrong"
    monkeypatch.setattr(machine, "LEAST_FREE", 10**18)
    full = named(machine.folders(tmp_path, tmp_path), "outputs")
    assert full.state == "wrong" and "free some space" in str(full.fault)


def test_variables_that_are_set_are_explained_and_secrets_hidden(tmp_path: Path) -> None:
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "ray.yaml").write_text("")
    values = {
        "OMNIFORCING_TOKEN": "very-secret",
        "OMNIFORCING_CLUSTER": "rya",
        "OMNIFORCING_DATA_ROOT": str(tmp_path / "nowhere"),
        "OMP_NUM_THREADS": "3",
        "HOME": "/root",
    }
    found = list(machine.variables(tmp_path, values))
    assert {finding.name for finding in found} == values.keys() - {"HOME"}
    assert "very-secret" not in page(found)
    assert named(found, "OMP_NUM_THREADS").state == "ok"
    assert "name one of ray" in str(named(found, "OMNIFORCING_CLUSTER").fault)
    assert named(found, "OMNIFORCING_DATA_ROOT").state == "wrong"


def test_a_gpu_that_torch_cannot_use_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 570.1'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "torch_build", lambda: "for CPUs")
    card = named(machine.devices({}), "GPU 0")
    assert card.state == "note" and "H200" in card.value and "CUDA" in str(card.fault)
    hidden = named(machine.devices({"CUDA_VISIBLE_DEVICES": ""}), "GPU 0")
    assert "CUDA_VISIBLE_DEVICES" in str(hidden.fault)
    monkeypatch.setattr(machine, "torch_build", lambda: "for CUDA 12.8")
    assert named(machine.devices({}), "GPU 0").state == "ok"
    monkeypatch.setenv("PATH", "")
    assert machine.gpus() == []


def test_secrets_are_not_shown_and_spans_without_their_package_are_a_note(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"HF_TOKEN": "hf_abc", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=abc"}
    values["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:4318"
    found = list(machine.variables(None, values))
    assert {finding.name for finding in found} == values.keys()
    assert "abc" not in " ".join(finding.value for finding in found)
    endpoint = named(found, "OTEL_EXPORTER_OTLP_ENDPOINT")
    assert endpoint.state == "ok" and "127.0.0.1:4318" in endpoint.value
    monkeypatch.setattr(machine, "SPANS_PACKAGE", "no-such-package")
    endpoint = named(machine.variables(None, values), "OTEL_EXPORTER_OTLP_ENDPOINT")
    assert endpoint.state == "note" and "omniforcing[telemetry]" in str(endpoint.fault)
