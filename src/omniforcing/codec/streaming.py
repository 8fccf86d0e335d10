"""Incremental decoding: what comes out in pieces equals what the codec decodes whole (design section 5).

Every convolution in time remembers the last input frames that later ones need and puts them where it would pad, and every
upsampler drops its leading frames in the first chunk alone; so nothing is computed twice. That is exact for causal decoders.
A video decoder that looks both ways, as LTX-2's, is decoded with a declared look-ahead: what follows its last known latent is
padded, so frames come out only when so many latents after them are known (``Reach``). The vocoder looks both ways too; it is
run on windows with the whole of its reach on either side, so its samples come that much later, and exact.
Each stream works on modules of its own that share the codec's weights: the codec stays untouched, and streams never meet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.codec.codec import Codec, to_frames
from omniforcing.codec.reach import Reach, require_settings, video_reach, vocoder_reach
from omniforcing.core.latents import Latents, Pair
from omniforcing.core.layout import Span, samples_of
from omniforcing.core.states import State, join_states, part_of

# --- decoders: every convolution remembers -------------------------------------------------------------------------------


@dataclass
class _Window:
    """The latents that a decoder runs over: how many, how many of them it will not see again, and where they lie.

    Attributes:
        latents: their number.
        settled: how many of them, from the first on, are over after this run; the rest comes again.
        begins: whether they begin the stream; the first latent of a stream makes one frame, not several.
    """

    latents: int = 0
    settled: int = 0
    begins: bool = True

    def units(self, latents: int, total: int) -> int:
        """How many of a layer's ``total`` frames belong to the first ``latents`` of the window."""
        if latents in (0, self.latents):
            return total if latents else 0
        rate = (total - self.begins) // (self.latents - self.begins)
        return self.begins + (latents - self.begins) * rate


class _StatefulConv(nn.Module):
    """A convolution in time (dimension 2) whose left padding is, after the first chunk, the end of what was settled.

    Args:
        conv: it pads nothing itself; it gets frames padded on the left alone or, if not ``causal``, on both sides.
        window: what the decoder is running over.
    """

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, window: _Window, causal: bool) -> None:
        super().__init__()
        self.conv, self.window = conv, window
        self.padding = (conv.kernel_size[0] - 1) * int(conv.dilation[0])
        self.context = self.padding if causal else self.padding // 2
        self.past: Tensor | None = None

    def forward(self, padded: Tensor) -> Tensor:
        if self.context == 0:
            return self.conv(padded)
        if self.past is not None:
            padded = torch.cat([self.past, padded[:, :, self.context :]], 2)
        if self.window.settled:
            end = self.window.units(self.window.settled, padded.shape[2] - self.padding)
            self.past = padded[
                :, :, end : end + self.context
            ].clone()  # a view would keep the whole chunk alive
        return self.conv(padded)


def _conv_states(root: nn.Module) -> State:
    """A copy of what every convolution of a decoder remembers, by its name."""
    named = (
        (name, module) for name, module in root.named_modules() if isinstance(module, _StatefulConv)
    )
    return {name: module.past.clone() for name, module in named if module.past is not None}


def _restore_conv_states(root: nn.Module, pasts: State) -> None:
    """Undo ``_conv_states`` in a fresh decoder."""
    for name, module in root.named_modules():
        if isinstance(module, _StatefulConv) and name in pasts:
            module.past = _in_conv_layout(pasts[name])


def _in_conv_layout(saved: Tensor) -> Tensor:
    """The layout in memory decides which convolution runs, and so the last bit."""
    return saved.contiguous(
        memory_format=torch.channels_last_3d if saved.ndim == 5 else torch.contiguous_format
    )


class _VideoUpsampler(nn.Module):
    """``LTX2VideoUpsampler3d`` that drops its leading frames once, not in every chunk."""

    def __init__(self, inner: Any, window: _Window) -> None:
        super().__init__()
        self.inner, self.window = inner, window

    def _unfold(self, x: Tensor) -> Tensor:
        """Channels to time and space: ``[B, C st sh sw, T, H, W]`` to ``[B, C, T st, H sh, W sw]``."""
        x = x.unflatten(1, (-1, *self.inner.stride))
        return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        out = self._unfold(self.inner.conv(x, causal=causal))
        if self.inner.residual:
            skip = self._unfold(x)
            out = out + skip.repeat(1, out.shape[1] // skip.shape[1], 1, 1, 1)
        return out[:, :, self.inner.stride[0] - 1 if self.window.begins else 0 :]


class _AudioUpsampler(nn.Module):
    """``LTX2AudioUpsample`` that drops its leading frame once, not in every chunk."""

    def __init__(self, inner: Any, window: _Window) -> None:
        super().__init__()
        self.inner, self.window = inner, window

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out[:, :, int(self.window.begins) :]


def _make_stateful(window: _Window, causal: bool, padding_conv: Any) -> nn.Module:
    padding_conv.conv = _StatefulConv(padding_conv.conv, window, causal)
    return padding_conv


def _share_weights(root: nn.Module) -> Any:
    """A copy of a module tree with the same tensors: new places for state, no second set of weights."""
    shared = {id(t): t for t in chain(root.parameters(), root.buffers())}
    return copy.deepcopy(root, shared).eval()


def _replace_modules(root: nn.Module, makers: dict[type, Callable[[Any], nn.Module]]) -> None:
    """Replace every descendant whose type has a maker by what the maker makes of it."""
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in makers:
                setattr(parent, name, makers[type(child)](child))


class StreamingVideoDecoder:
    """Picture from video latents, a few at a time; exact if the decoder is causal.

    Args:
        vae: the video VAE.
        reach: of a decoder that is not causal; None: what ``video_reach`` says.

    Raises:
        StreamingError: if the decoder is not a function of the latents alone.
    """

    def __init__(self, vae: Any, reach: Reach | None = None) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_ltx2 import (
            LTX2VideoCausalConv3d,
            LTX2VideoUpsampler3d,
        )

        config = vae.config
        noise = config.decoder_inject_noise
        require_settings(
            "video decoder",
            {
                "timestep_conditioning": (config.timestep_conditioning, False),
                "decoder_inject_noise": (
                    any(noise) if isinstance(noise, (list, tuple)) else noise,
                    False,
                ),
            },
        )
        self._causal = bool(config.decoder_causal)
        self.reach = video_reach(config) if reach is None else reach
        self._window = _Window()
        self._decoder = _share_weights(vae.decoder)
        # diffusers' own ratio is wrong where the config leaves it out and not every level halves the picture.
        upsamplers = (
            module for module in self._decoder.modules() if isinstance(module, LTX2VideoUpsampler3d)
        )
        self._enlarged = int(self._decoder.patch_size) * prod(
            int(module.stride[1]) for module in upsamplers
        )
        _replace_modules(
            self._decoder, {LTX2VideoUpsampler3d: partial(_VideoUpsampler, window=self._window)}
        )
        _replace_modules(
            self._decoder,
            {LTX2VideoCausalConv3d: partial(_make_stateful, self._window, self._causal)},
        )
        self._held: Tensor | None = None  # latents from number self._first on
        self._tail: Tensor | None = (
            None  # frames after the last that came out, made with less look-ahead
        )
        self._first = self._done = 0

    def push(self, z: Tensor) -> Tensor:
        """Decode ``[B, C, T, H, W]``, denormalised, to frames ``[B, 3, T', h, w]`` in [-1, 1]: 8 a latent, 1 for the first.

        They are the frames of all latents but the last ``reach.ahead`` of those pushed so far.
        """
        self._held = (
            torch.cat([self._held, z], 2) if self._held is not None and self._held.shape[2] else z
        )
        return self._emit(self._first + self._held.shape[2] - self.reach.ahead)

    def flush(self) -> Tensor:
        """Return the frames held back, ``[B, 3, T', h, w]``, none of a causal decoder: the end of the clip."""
        assert self._held is not None, "push before flush"
        return self._emit(self._first + self._held.shape[2])

    def _emit(self, stop: int) -> Tensor:
        """Frames of the latents from the last that came out to number ``stop``."""
        held = self._held
        assert held is not None, "push before flush"
        if stop <= self._done:
            size = (self._enlarged * n for n in held.shape[3:])
            return held.new_zeros(held.shape[0], 3, 0, *size)
        settled = max(self._first, stop - self.reach.again)
        window = self._window
        window.latents, window.settled, window.begins = (
            held.shape[2],
            settled - self._first,
            self._first == 0,
        )
        frames = self._decoder(held, causal=self._causal)
        begin, end = (window.units(n - self._first, frames.shape[2]) for n in (self._done, stop))
        out = _blended(self._tail, frames[:, :, begin:end])
        if self.reach.blend:
            self._tail = frames[:, :, end : end + self.reach.blend].clone()
        # A view would keep all latents alive.
        self._held = held[:, :, settled - self._first :].clone(memory_format=torch.preserve_format)
        self._first, self._done = settled, stop
        return out

    def state(self) -> State:
        """A copy of what is remembered after the first chunk, for ``restore``."""
        pasts = _conv_states(self._decoder)
        if self._causal:
            return pasts
        assert self._held is not None, "push before taking the state"
        tail = {} if self._tail is None else {"tail": self._tail.clone()}
        return {
            **pasts,
            **tail,
            "held": self._held.clone(),
            "places": torch.tensor([self._first, self._done]),
        }

    def restore(self, state: State) -> None:
        """Go on where ``state`` was taken."""
        _restore_conv_states(self._decoder, state)
        self._first = self._done = 1  # whatever is not the begin
        if not self._causal:
            self._first, self._done = state["places"].tolist()
            self._held = _in_conv_layout(state["held"])
            self._tail = state.get("tail")


def _blended(old: Tensor | None, new: Tensor) -> Tensor:
    """Frames ``[B, 3, T, h, w]`` that begin as what an earlier run made of them and fade into what this one did."""
    count = 0 if old is None else min(old.shape[2], new.shape[2])
    if old is None or count == 0:
        return new
    share = torch.arange(1, count + 1, device=new.device, dtype=new.dtype)[:, None, None] / (
        count + 1
    )
    return torch.cat([old[:, :, :count].lerp(new[:, :, :count], share), new[:, :, count:]], 2)


class StreamingMelDecoder:
    """Mel frames from audio latents, a few at a time.

    Raises:
        StreamingError: if the decoder is not causal along time.
    """

    def __init__(self, vae: Any) -> None:
        from diffusers.models.autoencoders.autoencoder_kl_ltx2_audio import (
            LTX2AudioCausalConv2d,
            LTX2AudioUpsample,
        )

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
        self._window = _Window()
        self._decoder = _share_weights(vae.decoder)
        _replace_modules(
            self._decoder, {LTX2AudioUpsample: partial(_AudioUpsampler, window=self._window)}
        )
        _replace_modules(
            self._decoder, {LTX2AudioCausalConv2d: partial(_make_stateful, self._window, True)}
        )

    def push(self, z: Tensor) -> Tensor:
        """Decode ``[B, c, T, f]``, denormalised, to log-mel ``[B, 2, T', F]``: 4 frames a latent, 1 for the first."""
        self._window.latents = self._window.settled = z.shape[2]
        mel = self._decoder(z)
        self._window.begins = False
        # The decoder cuts every output to 4N-3 frames, which is right for the first chunk; without the axis it cuts to 4N.
        self._decoder.causality_axis = None
        return mel

    def state(self) -> State:
        """A copy of what is remembered after the first chunk, for ``restore``."""
        return _conv_states(self._decoder)

    def restore(self, state: State) -> None:
        """Go on where ``state`` was taken."""
        _restore_conv_states(self._decoder, state)
        self._window.begins = False
        self._decoder.causality_axis = None


# --- the vocoder: windows with the whole reach ---------------------------------------------------------------------------


class StreamingVocoder:
    """Samples from mel frames, a few at a time, ``reach`` mel frames late: exactly what the whole would give."""

    def __init__(self, vocoder: Any) -> None:
        self.reach = vocoder_reach(vocoder.config)
        self._vocoder, self._rate = vocoder, int(vocoder.config.output_sampling_rate)
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
        # The vocoder turns mel frame m into samples from m hops on, one frame later than the frame that completes them.
        local = samples_of(Span(self._done - self._first + 1, stop - self._first + 1), self._rate)
        samples = self._vocoder(window)[..., local.slice]
        keep = max(0, stop - self.reach)
        self._held, self._first, self._done = (
            self._held[:, :, keep - self._first :].clone(),
            keep,
            stop,
        )
        return samples


# --- both ---------------------------------------------------------------------------------------------------------------


class StreamingDecoder:
    """Media from normalised latents, block by block: one stream's state over a codec that many streams may share.

    Concatenated, the chunks are what ``codec.decode`` makes of the concatenated latents, for any split; memory stays constant.
    Of a video decoder that is not causal they are so but for the error of its look-ahead (docs/results/decoding.md).

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
        self._video = StreamingVideoDecoder(self.codec.video_vae, self.codec.video_reach)
        self._mel = StreamingMelDecoder(self.codec.audio_vae)
        self._sound = StreamingVocoder(self.codec.vocoder)

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
    def flush(self) -> Pair[Tensor]:
        """The media still held back, up to the end of what was pushed: frames and samples as of ``push``. It is over then."""
        return Pair(to_frames(self._video.flush()), self._sound.flush())

    def state(self) -> State:
        """A copy of all that is remembered after at least one ``push``, for ``restore``."""
        return join_states(**{part: stream.state() for part, stream in self._streams.items()})

    def restore(self, state: State) -> None:
        """Go on, in a fresh decoder of the same codec, where ``state`` was taken: the same chunks follow, bit for bit."""
        for part, stream in self._streams.items():
            stream.restore(part_of(state, part))

    @property
    def _streams(self) -> dict[str, StreamingVideoDecoder | StreamingMelDecoder | StreamingVocoder]:
        return {"video": self._video, "mel": self._mel, "sound": self._sound}
