"""Decode latents block by block; the chunks joined equal the codec's whole decode.

Causal decoders are exact: their convolutions carry state (``stateful``), and nothing is computed
twice. LTX-2's released video decoder looks both ways. It is decoded with a declared look-ahead
(``Reach``): a frame comes out when that many latents after its own are known, and what follows the
last known latent is padded. The vocoder looks both ways too, but not far: it runs on windows
(``vocoder``), so its samples come that much later.

A stream works on modules of its own that share the codec's weights. The codec stays untouched, and
streams over one codec never meet.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from omniforcing.codec.codec import Codec, to_frames
from omniforcing.codec.diffusion import StreamingDiffusionDecoder
from omniforcing.codec.reach import Reach, require_settings, video_reach
from omniforcing.codec.stateful import (
    DecoderWindow,
    StatefulAudioUpsampler,
    StatefulVideoUpsampler,
    conv_states,
    copy_sharing_weights,
    in_conv_layout,
    make_stateful,
    replace_modules,
    restore_conv_states,
)
from omniforcing.codec.vocoder import StreamingVocoder
from omniforcing.core.latents import Latents
from omniforcing.core.pair import Media, Pair
from omniforcing.core.states import State, join_states, part_of


class StreamingVideoDecoder:
    """Decode video latents a few at a time; exact if the decoder is causal.

    Args:
        vae: video VAE.
        reach: how a decoder that is not causal is streamed; by default as ``video_reach`` says.

    Raises:
        StreamingError: if the decoder is not a function of the latents alone.
    """

    def __init__(self, vae: Any, reach: Reach | None = None) -> None:
        config = vae.config
        noise = config.decoder_inject_noise
        injects = any(noise) if isinstance(noise, (list, tuple)) else noise
        require_settings(
            "video decoder",
            {
                "timestep_conditioning": (config.timestep_conditioning, False),
                "decoder_inject_noise": (injects, False),
            },
        )
        self._causal = bool(config.decoder_causal)
        self.reach = video_reach(config) if reach is None else reach
        self._window = DecoderWindow()
        self._decoder = copy_sharing_weights(vae.decoder)
        # diffusers' own ratio is wrong where the config leaves it out and not every level halves
        # the picture.
        modules = self._decoder.modules()
        upsamplers = (m for m in modules if type(m).__name__ == "LTX2VideoUpsampler3d")
        self._scale = int(self._decoder.patch_size) * prod(int(m.stride[1]) for m in upsamplers)
        # Upsamplers first: the convolutions inside them are replaced by the second call.
        upsampler = partial(StatefulVideoUpsampler, window=self._window)
        replace_modules(self._decoder, {"LTX2VideoUpsampler3d": upsampler})
        conv = partial(make_stateful, self._window, self._causal)
        replace_modules(self._decoder, {"LTX2VideoCausalConv3d": conv})
        # Latents of the stream are counted from 0: ``_held`` begins with number ``_first``, and the
        # frames of all before number ``_done`` have come out.
        self._held: Tensor | None = None
        self._first = self._done = 0
        # Frames after the last that came out, made with less look-ahead, to fade from.
        self._tail: Tensor | None = None

    def push(self, z: Tensor) -> Tensor:
        """Decode the next latents.

        Args:
            z: denormalised latents ``[B, C, T, H, W]``.

        Returns:
            Frames ``[B, 3, T', h, w]`` in [-1, 1] of all latents but the last ``reach.ahead`` of
            those pushed so far: 8 for each latent, 1 for the first of the stream.
        """
        if self._held is not None and self._held.shape[2]:
            z = torch.cat([self._held, z], 2)
        self._held = z
        return self._emit(self._first + z.shape[2] - self.reach.ahead)

    def flush(self) -> Tensor:
        """End the clip; returns the frames held back ``[B, 3, T', h, w]``, none if causal."""
        assert self._held is not None, "push before flush"
        return self._emit(self._first + self._held.shape[2])

    def _emit(self, stop: int) -> Tensor:
        """Decode the held latents; returns the frames of latents ``_done`` to ``stop``."""
        held, window = self._held, self._window
        assert held is not None, "push before flush"
        if stop <= self._done:
            size = (self._scale * n for n in held.shape[3:])
            return held.new_zeros(held.shape[0], 3, 0, *size)
        # All that is held goes through the decoder, but only ``final`` latents advance the state of
        # its convolutions; the rest is decoded again when more of what follows is known.
        final = max(self._first, stop - self.reach.again)
        window.latents = held.shape[2]
        window.final = final - self._first
        window.is_first = self._first == 0
        frames = self._decoder(held, causal=self._causal)
        begin = window.frames(self._done - self._first, frames.shape[2])
        end = window.frames(stop - self._first, frames.shape[2])
        out = _crossfaded(self._tail, frames[:, :, begin:end])
        if self.reach.blend:
            self._tail = frames[:, :, end : end + self.reach.blend].clone()
        # A copy, for a view would keep all latents in memory.
        self._held = held[:, :, final - self._first :].clone(memory_format=torch.preserve_format)
        self._first, self._done = final, stop
        return out

    def state(self) -> State:
        """Copy the state after at least one ``push``, for ``restore``."""
        states = conv_states(self._decoder)
        if self._causal:
            return states
        assert self._held is not None, "push before taking the state"
        if self._tail is not None:
            states["tail"] = self._tail.clone()
        states["held"] = self._held.clone()
        states["places"] = torch.tensor([self._first, self._done])
        return states

    def restore(self, state: State) -> None:
        """Continue, in a fresh decoder, where ``state`` was taken."""
        restore_conv_states(self._decoder, state)
        # A causal decoder holds nothing back: all that counts is that the stream has begun.
        self._first = self._done = 1
        if not self._causal:
            self._first, self._done = state["places"].tolist()
            self._held = in_conv_layout(state["held"])
            self._tail = state.get("tail")


def _crossfaded(old: Tensor | None, new: Tensor) -> Tensor:
    """Fade from an earlier run's frames into this run's, ``[B, 3, T, h, w]``."""
    count = 0 if old is None else min(old.shape[2], new.shape[2])
    if old is None or count == 0:
        return new
    steps = torch.arange(1, count + 1, device=new.device, dtype=new.dtype)
    share = steps[:, None, None] / (count + 1)
    return torch.cat([old[:, :, :count].lerp(new[:, :, :count], share), new[:, :, count:]], 2)


class StreamingMelDecoder:
    """Decode audio latents to log-mel a few at a time; exact.

    Args:
        vae: audio VAE.

    Raises:
        StreamingError: if the decoder is not causal along time.
    """

    def __init__(self, vae: Any) -> None:
        config = vae.config
        require_settings(
            "audio decoder",
            {
                "causality_axis": (config.causality_axis, "height"),
                "norm_type": (config.norm_type, "pixel"),
                "mid_block_add_attention": (config.mid_block_add_attention, False),
                "attn_resolutions": (config.attn_resolutions or None, None),
            },
        )
        self._window = DecoderWindow()
        self._decoder = copy_sharing_weights(vae.decoder)
        upsampler = partial(StatefulAudioUpsampler, window=self._window)
        replace_modules(self._decoder, {"LTX2AudioUpsample": upsampler})
        conv = partial(make_stateful, self._window, True)
        replace_modules(self._decoder, {"LTX2AudioCausalConv2d": conv})

    def push(self, z: Tensor) -> Tensor:
        """Decode the next latents.

        Args:
            z: denormalised latents ``[B, c, T, f]``.

        Returns:
            Log-mel ``[B, 2, T', F]``: 4 frames for each latent, 1 for the first of the stream.
        """
        self._window.latents = self._window.final = z.shape[2]
        mel = self._decoder(z)
        self._mark_begun()
        return mel

    def _mark_begun(self) -> None:
        self._window.is_first = False
        # The decoder cuts every output to 4N - 3 frames, which is right for the first chunk alone.
        # Without a causality axis it cuts to 4N.
        self._decoder.causality_axis = None

    def state(self) -> State:
        """Copy the state after at least one ``push``, for ``restore``."""
        return conv_states(self._decoder)

    def restore(self, state: State) -> None:
        """Continue, in a fresh decoder, where ``state`` was taken."""
        restore_conv_states(self._decoder, state)
        self._mark_begun()


class StreamingDecoder:
    """Decode normalised latents block by block: the state of one stream over a shared codec.

    The chunks joined are ``codec.decode`` of the latents joined, for any split, and memory stays
    constant. A video decoder that is not causal differs by the error of its look-ahead
    (docs/results/decoding.md).

    Args:
        codec: codec, which streams may share.
        grid: rows and columns of video tokens.
        seed: seed of a diffusion decoder's noise.

    Raises:
        StreamingError: if a part of the codec cannot be decoded piece by piece.
    """

    def __init__(self, codec: Codec, grid: tuple[int, int], seed: int = 0) -> None:
        self.codec, self.grid, self._seed = codec, grid, seed
        self.reset()

    def reset(self) -> None:
        """Begin another stream."""
        self._video = self._new_video_decoder()
        self._mel = StreamingMelDecoder(self.codec.audio_vae)
        self._sound = StreamingVocoder(self.codec.vocoder, self.codec.sound_reach)

    def _new_video_decoder(self) -> StreamingVideoDecoder | StreamingDiffusionDecoder:
        codec, reach = self.codec, self.codec.video_reach
        if codec.diffusion is None:
            return StreamingVideoDecoder(codec.video_vae, reach)
        return StreamingDiffusionDecoder(codec.diffusion, reach, self._seed)

    @property
    def look_ahead(self) -> int:
        """Mel frames by which the sound lags the picture."""
        return self._sound.reach.look_ahead

    @torch.inference_mode()
    def push(self, latents: Latents) -> Media:
        """Decode the next latents.

        Args:
            latents: video ``[B, Tv, S, Cv]`` and audio ``[B, Ta, Ca]``, at least one of each.

        Returns:
            Media that became decodable: frames uint8 ``[B, T, H, W, 3]``, samples float32
            ``[B, 2, N]``.
        """
        z = self.codec.denormalise(latents, self.grid)
        return Pair(to_frames(self._video.push(z.video)), self._sound.push(self._mel.push(z.audio)))

    @torch.inference_mode()
    def flush(self) -> Media:
        """End the stream; returns the media still held back, as ``push`` does."""
        return Pair(to_frames(self._video.flush()), self._sound.flush())

    def state(self) -> State:
        """Copy the state after at least one ``push``, for ``restore``."""
        return join_states(**{name: part.state() for name, part in self._parts.items()})

    def restore(self, state: State) -> None:
        """Continue, in a fresh decoder of the same codec; the same chunks follow, bit for bit."""
        for name, part in self._parts.items():
            part.restore(part_of(state, name))

    @property
    def _parts(self) -> dict[str, Any]:
        # The names are those in saved states.
        return {"video": self._video, "mel": self._mel, "sound": self._sound}
