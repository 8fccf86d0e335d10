"""As many layers as a card's memory holds."""

from __future__ import annotations

from collections.abc import Callable
from math import floor

from omniforcing.core.errors import OmniForcingError


def layers_that_fit(bytes_of: Callable[[int], float], layers: int, usable: float) -> int:
    """Return how many of a model's layers fit.

    Args:
        bytes_of: memory of the model with that many layers, linear in them.
        layers: of the whole model.
        usable: bytes of the card's memory.

    Raises:
        OmniForcingError: if not even one layer fits.
    """
    if bytes_of(layers) <= usable:
        return layers
    one = bytes_of(1)
    if one > usable:
        raise OmniForcingError(
            "device.too-small",
            f"one layer needs {one / 1e9:.0f} GB, the card has {usable / 1e9:.0f} usable; "
            "use a larger card",
        )
    per_layer = (bytes_of(layers) - one) / (layers - 1)
    return 1 + floor((usable - one) / per_layer)
