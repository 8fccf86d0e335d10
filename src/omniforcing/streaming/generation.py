"""A stream's latents, block by block: what opens it, what steers it, and its state at any border. No threads here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omniforcing.core.latents import Latents, Pair, TextFeatures
from omniforcing.core.states import State, joined, part_of
from omniforcing.model.rollout import Rollout


@dataclass(frozen=True)
class Opening:
    """What a stream begins with instead of noise.

    Attributes:
        image: video latents ``[1, 1, S, C]`` of a first frame, or None.
        blocks: latents of the first blocks, for continuing a clip.
    """

    image: Tensor | None = None
    blocks: Sequence[Latents] = ()


class Generation:
    """The student rolling on without end.

    Args:
        start: makes a fresh rollout for features of a prompt, always with the same random generator.
        text: features of the prompt, batch 1.
        opening: what to begin with.
    """

    def __init__(
        self,
        start: Callable[[TextFeatures], Rollout],
        text: TextFeatures,
        opening: Opening | None = None,
    ) -> None:
        self._start, self._text, self._opening = start, text, opening or Opening()
        self._rollout = start(text)
        self._kept: list[Latents] = []  # the prefix, then whole cycles that cover the window
        self.index = 0

    @torch.no_grad()
    def next(self) -> Latents:
        """The next block's latents, video ``[1, Tv, S, Cv]`` and audio ``[1, Ta, Ca]``."""
        if self.index < len(self._opening.blocks):
            latents = self._rollout.follow(self._opening.blocks[self.index])
        elif self.index == 0 and self._opening.image is not None:
            latents = self._rollout.begin(self._opening.image)
        else:
            latents = next(self._rollout)
        self._keep(latents)
        self.index += 1
        return latents

    def _keep(self, latents: Latents) -> None:
        window, cycle = self._rollout.config.window, len(self._rollout.config.table.cycle)
        self._kept.append(latents)
        # Only whole cycles are dropped, so that what is kept can stand at the beginning of a stream.
        if len(self._kept) - 1 >= window + cycle:
            del self._kept[1 : 1 + cycle]

    def switch(self, text: TextFeatures, rewrite: bool = False) -> None:
        """Follow another prompt from the next block on.

        Args:
            text: its features.
            rewrite: also write anew what the student remembers, the prefix and the window, as if the stream had begun with
                such blocks under this prompt (``Rollout.rewrite``). The change comes at once, and costs as much as
                generating those blocks. K/V alone, of the old blocks under the new prompt, hardly make a difference. A first
                frame is repainted with the rest. Nothing is rewritten while a clip that opens the stream is repeated, and by
                a student of one sigma, which would begin again from noise.
        """
        self._text, config = text, self._rollout.config
        if not rewrite or self.index < len(self._opening.blocks) or len(config.sigmas) == 1:
            self._rollout.switch(text)
            return
        self._rollout = self._start(text)
        self._kept = [self._rollout.rewrite(latents) for latents in self._kept]

    @property
    def can_be_saved(self) -> bool:
        """Whether what opened the stream is behind it."""
        return self.index >= max(1, len(self._opening.blocks))

    def state(self) -> State:
        """A copy of everything that the blocks to come depend on; only when ``can_be_saved``."""
        kept = {
            f"kept.{n}": dict(latents.map(torch.clone).items())
            for n, latents in enumerate(self._kept)
        }
        text = dict(self._text.map(torch.clone).items())
        return {
            **joined(text=text, rollout=self._rollout.state(), **kept),
            "index": torch.tensor(self.index),
        }

    @classmethod
    def restore(cls, start: Callable[[TextFeatures], Rollout], state: State) -> Generation:
        """Go on from a state: the blocks to come are the same, bit for bit."""
        generation = cls(start, Pair(**part_of(state, "text")))
        generation.index = int(state["index"])
        kept = part_of(state, "kept")
        generation._kept = [Pair(**part_of(kept, str(n))) for n in range(len(kept) // 2)]
        generation._rollout.restore(part_of(state, "rollout"))
        return generation
