"""Which class computes a network: ours, or the library's for what no own network covers.

The one place that imports diffusers' networks, and only where a config asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omniforcing.networks import audio_vae, video_vae, vocoder
from omniforcing.networks.connectors import LTX2TextConnectors
from omniforcing.networks.diffusion_decoder import LTX2VideoDiffusionDecoderModel
from omniforcing.networks.transformer import LTX2VideoTransformer3DModel

_COVERED = {
    "AutoencoderKLLTX2Video": (video_vae.AutoencoderKLLTX2Video, video_vae.covers),
    "AutoencoderKLLTX2Audio": (audio_vae.AutoencoderKLLTX2Audio, audio_vae.covers),
    "LTX2Vocoder": (vocoder.LTX2Vocoder, vocoder.covers),
}
_WHOLE = {
    "LTX2TextConnectors": LTX2TextConnectors,
    "LTX2VideoDiffusionDecoderModel": LTX2VideoDiffusionDecoderModel,
    "LTX2VideoTransformer3DModel": LTX2VideoTransformer3DModel,
}


def network_class(name: str, config: Mapping[str, Any]) -> Any:
    """Return the class of a network.

    Args:
        name: diffusers' name of the class.
        config: its arguments.
    """
    if name in _WHOLE:
        return _WHOLE[name]
    if name in _COVERED and _COVERED[name][1](dict(config)):
        return _COVERED[name][0]
    import diffusers
    from diffusers.pipelines import ltx2

    return getattr(diffusers, name, None) or getattr(ltx2, name)
