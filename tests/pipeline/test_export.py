"""Stage export: what a server of the logged model installs."""

from packaging.requirements import Requirement

from omniforcing.pipeline.stages.export import installed_requirements


def test_the_model_asks_for_each_library_of_the_base_package_at_one_exact_version() -> None:
    lines = installed_requirements()
    names = {Requirement(line).name for line in lines}
    # safetensors is declared with a lower bound, torch's version is a local one on a CPU.
    assert {"torch", "diffusers", "safetensors", "av"} <= names
    assert "mlflow" not in names
    for line in lines:
        name, version = line.split("==")
        assert name
        assert not set(version) & set("+<>=~ ")
