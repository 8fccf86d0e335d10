"""The figures of the code's structure."""

from pathlib import Path

from tools.structure import Module, circle, figures, imports_upward

LOW = (
    '"""Low."""\n\n\ndef double(x: int) -> int:\n'
    '    """Twice x."""\n    return 2 * x  # a product\n'
)
HIGH = (
    "from omniforcing.core.low import double\n\n\n"
    "class Plain:\n    def method(self, x):\n        return double(x)\n"
)


def tree(**files: str) -> list[Module]:
    return [Module(Path(name.replace("__", "/") + ".py"), text) for name, text in files.items()]


def test_figures_of_a_small_tree() -> None:
    found = figures(tree(core__low=LOW, model__high=HIGH))
    assert found["files"] == "2" and found["code lines"] == "6"
    assert found["comments per 100 code lines"] == "16.7"
    assert (
        found["public names described"] == "33 % of 3"
        and found["public functions typed"] == "50 % of 2"
    )
    assert found["imports upward"] == "0" and found["a circle of imports"] == "none"


def test_an_import_upward_and_a_circle_are_named() -> None:
    low = "def late():\n    from omniforcing.model import high\n    return high\n"
    modules = tree(core__low=low, model__high=HIGH)
    assert imports_upward(modules) == ["core.low -> model", "core.low -> model.high"]
    assert set(circle(modules)) == {"core.low", "model.high"}
