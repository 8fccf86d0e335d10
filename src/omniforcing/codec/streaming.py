"""Incremental decoding: what comes out in pieces equals what the codec decodes whole (design section 5).

The causal decoders are exact without recomputing anything: every convolution in time remembers its last input frames
and puts them where it would pad, and every upsampler drops its leading frames in the first chunk alone. The vocoder
looks both ways; it is run on windows with the whole of its reach on either side, so its samples come that much later.
Each stream works on modules of its own that share the codec's weights: the codec stays untouched, and streams never meet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.codec.codec import Codec, to_frames
from omniforcing.codec.reach import refuse, vocoder_reach
from omniforcing.latents import Latents, Pair
from omniforcing.layout import Span, samples_of
from omniforcing.states import State, joined, part_of

# --- causal decoders: every convolution remembers -----------------------------------------------------------------------


class _Remembering(nn.Module):
    """A convolution in time (dimension 2) whose left padding is, after the first chunk, the end of the chunk before."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.conv = conv
        self.context = (conv.kernel_size[0] - 1) * int(conv.dilation[0])
        self.past: Tensor | None = None

    def forward(self, padded: Tensor) -> Tensor:
        if self.context == 0:
            return self.conv(padded)
        if self.past is not None:
            padded = torch.cat([self.past, padded[:, :, self.context :]], 2)
        self.past = padded[:, :, -self.context :].clone()  # a view would keep the whole chunk alive
        return self.conv(padded)


def _pasts(root: nn.Module) -> State:
    """A copy of what every convolution of a decoder remembers, by its name."""
    named = ((name, module) for name, module in root.named_modules() if isinstance(module, _Remembering))
    return {name: module.past.clone() for name, module in named if module.past is not None}


def _remember_again(root: nn.Module, pasts: State) -> None:
    """Undo ``_pasts`` in a fresh decoder, which is past its first chunk then."""
    for name, module in root.named_modules():
        if isinstance(module, _Remembering) and module.context:
            # The layout in memory decides which convolution runs, and so the last bit.
            layout = torch.channels_last_3d if pasts[name].ndim == 5 else torch.contiguous_format
            module.past = pasts[name].contiguous(memory_format=layout)
        elif isinstance(module, _VideoUpsampler | _AudioUpsampler):
            module.lead = 0


class _VideoUpsampler(nn.Module):
    """``LTX2VideoUpsampler3d`` that drops its leading frames once, not in every chunk."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.lead = inner.stride[0] - 1

    def _unfold(self, x: Tensor) -> Tensor:
        """Channels to time and space: ``[B, C st sh sw, T, H, W]`` to ``[B, C, T st, H sh, W sw]``."""
        x = x.unflatten(1, (-1, *self.inner.stride))
        return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        out = self._unfold(self.inner.conv(x, causal=causal))
        if self.inner.residual:
            skip = self._unfold(x)
            out = out + skip.repeat(1, out.shape[1] // skip.shape[1], 1, 1, 1)
        lead, self.lead = self.lead, 0
        return out[:, :, lead:]


class _AudioUpsampler(nn.Module):
    """``LTX2AudioUpsample`` that drops its leading frame once, not in every chunk."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.lead = 1

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        lead, self.lead = self.lead, 0
        return out[:, :, lead:]


def _remember(causal_conv: Any) -> nn.Module:
    causal_conv.conv = _Remembering(causal_conv.conv)
    return causal_conv


def _own_modules(root: nn.Module) -> Any:
    """A copy of a module tree with the same tensors: new places for state, no second set of weights."""
    shared = {id(t): t for t in chain(root.parameters(), root.buffers())}
    return copy.deepcopy(root, shared).eval()


def _replace(root: nn.Module, makers: dict[type, Callable[[Any], nn.Module]]) -> None:
    """Replace every descendant whose type has a maker by what the maker makes of it."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in makers:
                setattr(parent, name, makers[type(child)](child))


class VideoStream:
    """Picture from video latents, a few at a time.

    Raises:
        StreamingError: if the decoder is not causal, or is not a function of the latents alone.
    """

    def __init__(self, vae: Any) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d, LTX2VideoUpsampler3d

        config = vae.config
        noise = config.decoder_inject_noise
        refuse(
            "video decoder",
            {
                "decoder_causal": (config.decoder_causal, True),
                "timestep_conditioning": (config.timestep_conditioning, False),
                "decoder_inject_noise": (any(noise) if isinstance(noise, (list, tuple)) else noise, False),
            },
        )
        self._decoder = _own_modules(vae.decoder)
        _replace(self._decoder, {LTX2VideoUpsampler3d: _VideoUpsampler})
        _replace(self._decoder, {LTX2VideoCausalConv3d: _remember})

    def push(self, z: Tensor) -> Tensor:
        """Decode ``[B, C, T, H, W]``, denormalised, to frames ``[B, 3, T', h, w]`` in [-1, 1]: 8 a latent, 1 for the first."""
        return self._decoder(z, causal=True)

    def state(self) -> State:
        """A copy of what is remembered after the first chunk, for ``restore``."""
        return _pasts(self._decoder)

    def restore(self, state: State) -> None:
        """Go on where ``state`` was taken."""
        _remember_again(self._decoder, state)


class MelStream:
    """Mel frames from audio latents, a few at a time.

    Raises:
        StreamingError: if the decoder is not causal along time.
    """

    def __init__(self, vae: Any) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import LTX2AudioCausalConv2d, LTX2AudioUpsample

        config = vae.config
        refuse(
            "audio decoder",
            {
                "causality_axis": (config.causality_axis, "height"),
                "norm_type": (config.norm_type, "pixel"),
                "mid_block_add_attention": (config.mid_block_add_attention, False),
                "attn_resolutions": (config.attn_resolutions or None, None),
            },
        )
        self._decoder = _own_modules(vae.decoder)
        _replace(self._decoder, {LTX2AudioUpsample: _AudioUpsampler})
        _replace(self._decoder, {LTX2AudioCausalConv2d: _remember})

    def push(self, z: Tensor) -> Tensor:
        """Decode ``[B, c, T, f]``, denormalised, to log-mel ``[B, 2, T', F]``: 4 frames a latent, 1 for the first."""
        mel = self._decoder(z)
        # The decoder cuts every output to 4N-3 frames, which is right for the first chunk; without the axis it cuts to 4N.
        self._decoder.causality_axis = None
        return mel

    def state(self) -> State:
        """A copy of what is remembered after the first chunk, for ``restore``."""
        return _pasts(self._decoder)

    def restore(self, state: State) -> None:
        """Go on where ``state`` was taken."""
        _remember_again(self._decoder, state)
        self._decoder.causality_axis = None


# --- the vocoder: windows with the whole reach ---------------------------------------------------------------------------


class SoundStream:
    """Samples from mel frames, a few at a time, ``reach`` mel frames late: exactly what the whole would give."""

    def __init__(self, vocoder: Any) -> None:
        self.reach = vocoder_reach(vocoder.config)
        self._vocoder = vocoder
        self._held: Tensor | None = None  # mel frames from index self._first on
        self._first = 0
        self._done = 0

    @property
    def _seen(self) -> int:
        return self._first + (0 if self._held is None else self._held.shape[2])

    def push(self, mel: Tensor) -> Tensor:
        """Take log-mel ``[B, 2, T, 64]``, return the samples ``[B, 2, N]`` that no later mel frame can change."""
        self._held = mel if self._held is None else torch.cat([self._held, mel], 2)
        return self._emit(self._seen - self.reach)

    def flush(self) -> Tensor:
        """Return the rest ``[B, 2, N]``, up to the centre of the last mel frame: the end of the clip."""
        return self._emit(self._seen - 1)

    def state(self) -> State:
        """A copy of what is held back after the first chunk, for ``restore``."""
        assert self._held is not None, "push before taking the state"
        return {"held": self._held.clone(), "places": torch.tensor([self._first, self._done])}

    def restore(self, state: State) -> None:
        """Go on where ``state`` was taken."""
        self._held = state["held"]
        self._first, self._done = state["places"].tolist()

    def _emit(self, stop: int) -> Tensor:
        """Samples of the vocoder's mel frames from the last emitted to ``stop``; forgets what no later sample needs."""
        assert self._held is not None, "push before flush"
        if stop <= self._done:
            return self._held.new_zeros(self._held.shape[0], 2, 0)
        window = self._held[:, :, : stop + self.reach - self._first]
        # The vocoder turns mel frame m into samples from 160 m on, one frame later than the frame that completes them.
        local = samples_of(Span(self._done - self._first + 1, stop - self._first + 1))
        samples = self._vocoder(window)[..., local.slice]
        keep = max(0, stop - self.reach)
        self._held, self._first, self._done = self._held[:, :, keep - self._first :].clone(), keep, stop
        return samples


# --- both ---------------------------------------------------------------------------------------------------------------


class StreamingDecoder:
    """Media from normalised latents, block by block: one stream's state over a codec that many streams may share.

    Concatenated, the chunks are what ``codec.decode`` makes of the concatenated latents, for any split; memory stays constant.

    Args:
        codec: the codec.
        grid: spatial tokens of a video latent, (H, W).

    Raises:
        StreamingError: if a part of the codec cannot be decoded piece by piece.
    """

    def __init__(self, codec: Codec, grid: tuple[int, int]) -> None:
        self.codec, self.grid = codec, grid
        self.reset()

    def reset(self) -> None:
        """Begin another stream."""
        self._video = VideoStream(self.codec.video_vae)
        self._mel = MelStream(self.codec.audio_vae)
        self._sound = SoundStream(self.codec.vocoder)

    @property
    def look_ahead(self) -> int:
        """Mel frames by which the sound comes later than the picture."""
        return self._sound.reach

    @torch.inference_mode()
    def push(self, latents: Latents) -> Pair[Tensor]:
        """Decode the next latents ``[B, Tv, S, Cv]`` and ``[B, Ta, Ca]``, at least one of each.

        Returns:
            The media that became decodable: frames uint8 ``[B, T, H, W, 3]``, samples float32 ``[B, 2, N]``.
        """
        z = self.codec.denormalise(latents, self.grid)
        return Pair(to_frames(self._video.push(z.video)), self._sound.push(self._mel.push(z.audio)))

    @torch.inference_mode()
    def flush(self) -> Tensor:
        """The samples ``[B, 2, N]`` still held back, up to the end of what was pushed; the stream is over then."""
        return self._sound.flush()

    def state(self) -> State:
        """A copy of all that is remembered after at least one ``push``, for ``restore``."""
        return joined(**{part: stream.state() for part, stream in self._streams.items()})

    def restore(self, state: State) -> None:
        """Go on, in a fresh decoder of the same codec, where ``state`` was taken: the same chunks follow, bit for bit."""
        for part, stream in self._streams.items():
            stream.restore(part_of(state, part))

    @property
    def _streams(self) -> dict[str, VideoStream | MelStream | SoundStream]:
        return {"video": self._video, "mel": self._mel, "sound": self._sound}
