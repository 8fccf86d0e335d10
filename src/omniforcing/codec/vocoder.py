"""Turn log-mel into samples a few frames at a time, with either of LTX-2's vocoders.

LTX-2.0's vocoder is one network that looks both ways. That of 2.3 and 2.5 is a chain: a network
makes 16 kHz, a causal STFT hears them, a second network makes the residual at 48 kHz, and the
resampled 16 kHz are added to it. Each step runs over windows that hold the context which that step
needs (``Windowed``), so only context is computed twice. Samples come later by what the steps look
ahead (``SoundReach``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from omniforcing.codec.reach import (
    SoundReach,
    bandwidth_extender,
    network_reach,
    sound_reach,
)
from omniforcing.codec.stateful import copy_sharing_weights
from omniforcing.core.layout import MEL_RATE
from omniforcing.core.states import State, join_states, part_of

# Of shorter strides torch's own kernel is as fast.
LONG_STRIDE = 16


class PolyphaseUpsampler(nn.Module):
    """A transposed convolution in time whose stride divides its kernel, as one matrix product.

    Sample ``t * stride + r`` of the output adds up ``kernel / stride`` inputs, each times the
    weight of its phase r: a convolution with as many outputs as there are phases. torch's own
    kernel makes a column of the whole kernel per input and adds the columns up, which takes more
    than twice as long on a CPU (4.3 to 1.9 ms for 32 to 16 channels by 320, torch 2.13).

    Args:
        conv: the convolution. Its weights are copied, in the order of the product.
    """

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        super().__init__()
        self.stride, self.padding = conv.stride[0], int(conv.padding[0])
        self.taps = conv.kernel_size[0] // self.stride
        # [in, out, taps, stride] to [in, taps, stride, out], the newest input last.
        phases = conv.weight.detach().unflatten(2, (self.taps, self.stride)).flip(2)
        self.weight = phases.permute(0, 2, 3, 1).flatten(2).flatten(0, 1)
        self.bias = None if conv.bias is None else conv.bias.detach()

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether a module is such a convolution, on a CPU, and long enough to gain."""
        if not isinstance(conv, nn.ConvTranspose1d) or conv.weight.device.type != "cpu":
            return False
        (stride,), (kernel,) = conv.stride, conv.kernel_size
        plain = conv.groups == 1 and conv.dilation == (1,) and conv.output_padding == (0,)
        return plain and stride >= LONG_STRIDE and kernel % stride == 0

    def forward(self, x: Tensor) -> Tensor:
        """Upsample ``[B, C, T]`` to ``[B, C', (T - 1) * stride + kernel - 2 * padding]``."""
        around = self.taps - 1
        inputs = nn.functional.pad(x, (around, around)).unfold(2, self.taps, 1)  # [B, C, T', taps]
        phases = inputs.transpose(1, 2).flatten(2) @ self.weight  # [B, T', stride * C']
        samples = phases.unflatten(2, (self.stride, -1)).flatten(1, 2)
        samples = samples[:, self.padding : samples.shape[1] - self.padding]
        if self.bias is not None:
            samples = samples + self.bias
        return samples.transpose(1, 2)


def with_fast_upsamplers(network: Any) -> Any:
    """A twin of a network that shares its weights, with ``PolyphaseUpsampler`` where it fits."""
    twin = copy_sharing_weights(network)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if PolyphaseUpsampler.fits(child):
                setattr(parent, name, PolyphaseUpsampler(child))
    return twin


class Windowed:
    """Run a step over a sequence piece by piece, each piece as a window with its context.

    Time is dimension 2. A unit of the input makes a unit of the output, where a unit is one or more
    elements.

    Args:
        run: the step, ``[B, 2, n * unit_in, ...]`` to ``[B, 2, n * unit_out, *rest]``.
        before: units before its own that an output unit depends on.
        after: units after its own that an output unit is computed with.
        unit_in: elements of an input unit.
        unit_out: elements of an output unit.
        rest: sizes of the output's dimensions after time.
    """

    def __init__(
        self,
        run: Callable[[Tensor], Tensor],
        before: int,
        after: int,
        unit_in: int = 1,
        unit_out: int = 1,
        rest: tuple[int, ...] = (),
    ) -> None:
        self.run, self.before, self.after = run, before, after
        self.unit_in, self.unit_out, self.rest = unit_in, unit_out, rest
        # Units are counted from 0: ``_held`` begins with number ``_first``, and the output of all
        # before number ``_done`` has come out.
        self._held: Tensor | None = None
        self._first = self._done = 0

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        """Take the next units.

        Args:
            x: input ``[B, 2, n * unit_in, ...]``; n may be 0.
            last: whether the sequence ends with them.

        Returns:
            Output of the units that have all their context; of all that are left if ``last``.
        """
        held = x if self._held is None else torch.cat([self._held, x], 2)
        self._held, first = held, self._first
        stop = first + held.shape[2] // self.unit_in - (0 if last else self.after)
        if stop <= self._done:
            return held.new_zeros(held.shape[0], 2, 0, *self.rest)
        begin, end = ((unit - first) * self.unit_out for unit in (self._done, stop))
        out = self.run(held)[:, :, begin:end]
        keep = max(first, stop - self.before)
        # A copy, for a view would keep the whole window in memory.
        self._held = held[:, :, (keep - first) * self.unit_in :].clone()
        self._first, self._done = keep, stop
        return out

    def nothing(self) -> Tensor:
        """Return an input of no units, to end the sequence with."""
        assert self._held is not None, "push before flush"
        return self._held[:, :, :0]

    def state(self) -> State:
        """Copy the state after at least one ``push``, for ``restore``."""
        assert self._held is not None, "push before taking the state"
        return {"held": self._held.clone(), "places": torch.tensor([self._first, self._done])}

    def restore(self, state: State) -> None:
        """Continue, in a fresh object, where ``state`` was taken."""
        self._held = state["held"]
        self._first, self._done = state["places"].tolist()


class StreamingVocoder:
    """Turn log-mel into samples a few frames at a time, ``reach.look_ahead`` mel frames late.

    Exact to float error for LTX-2.0's vocoder; for a chain with bandwidth extension the error
    depends on the reach (docs/results/decoding.md).

    Args:
        vocoder: ``LTX2Vocoder`` or ``LTX2VocoderWithBWE``.
        reach: how far it looks ahead; by default as ``sound_reach`` says.

    Raises:
        StreamingError: if the vocoder's reach is not known.
    """

    def __init__(self, vocoder: Any, reach: SoundReach | None = None) -> None:
        config = vocoder.config
        self.reach = reach or sound_reach(config)
        self._rate = int(config.output_sampling_rate) // MEL_RATE  # samples of a mel frame
        extender = bandwidth_extender(config)
        # What lies before is always complete: only what follows costs time to wait for.
        full = network_reach(config)
        network = with_fast_upsamplers(vocoder if extender is None else vocoder.vocoder)
        made = self._rate if extender is None else int(config.input_sampling_rate) // MEL_RATE
        self._network = Windowed(network, full, self.reach.mel, 1, made)
        self._steps = {"network": self._network}
        if extender is None:
            return
        hop, output = int(config.hop_length), int(extender.frame_samples)
        # The STFT's left padding spoils the frames that it reaches, but for the stream's first
        # ones: whole hops of context, for others would shift the grid of its frames.
        past = -(-(int(config.window_length) - hop) // hop)
        mels = (int(config.num_mel_channels),)
        self._spectrum = Windowed(self._hear, past, 0, hop, 1, mels)
        # Both come out at the same time. The resampler needs one hop on either side, and a mel
        # frame, which is two, must be left for the end.
        after = max(2, self.reach.frames)
        self._extender = Windowed(vocoder.bwe_generator, extender.reach, after, 1, output)
        self._resampler = Windowed(vocoder.resampler, 1, after, hop, output)
        self._stft = vocoder.mel_stft
        self._steps |= {
            "spectrum": self._spectrum,
            "extender": self._extender,
            "resampler": self._resampler,
        }

    def push(self, mel: Tensor) -> Tensor:
        """Take the next mel frames.

        Args:
            mel: log-mel ``[B, 2, T, 64]``.

        Returns:
            Samples ``[B, 2, N]`` that are not computed again.
        """
        return self._take(mel, last=False)

    def flush(self) -> Tensor:
        """End the clip; returns the samples ``[B, 2, N]`` up to the last mel frame's centre."""
        samples = self._take(self._network.nothing(), last=True)
        # Mel frame m makes the samples that follow its centre: the last one's lie past the clip.
        return samples[..., : -self._rate]

    def _take(self, mel: Tensor, last: bool) -> Tensor:
        wave = self._network.push(mel, last)
        if len(self._steps) == 1:
            return wave
        residual = self._extender.push(self._spectrum.push(wave, last), last)
        return torch.clamp(residual + self._resampler.push(wave, last), -1, 1)

    def _hear(self, wave: Tensor) -> Tensor:
        """Compute log-mel ``[B, 2, n, F]`` of a wave ``[B, 2, n * hop]``."""
        log_mel = self._stft(wave.flatten(0, 1))[0]
        return log_mel.unflatten(0, wave.shape[:2]).transpose(2, 3)

    def state(self) -> State:
        """Copy the state after at least one ``push``, for ``restore``."""
        if len(self._steps) == 1:
            return self._network.state()
        return join_states(**{name: step.state() for name, step in self._steps.items()})

    def restore(self, state: State) -> None:
        """Continue, in a fresh vocoder, where ``state`` was taken."""
        if len(self._steps) == 1:
            self._network.restore(state)
            return
        for name, step in self._steps.items():
            step.restore(part_of(state, name))
