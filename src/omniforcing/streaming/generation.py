"""Latents of a stream, block by block: its opening, changes of prompt, its state at any border.

Threads are the business of ``live.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.pair import Pair
from omniforcing.core.states import State, join_states, part_of
from omniforcing.model.inference.overlay import Overlay, Scales
from omniforcing.model.rollout import Rollout


@dataclass(frozen=True)
class Opening:
    """First frame or first blocks of a stream, given instead of generated.

    Attributes:
        image: video latents ``[1, 1, S, C]`` of the first frame, or None.
        blocks: latents of the first blocks, for a stream that continues a clip.
    """

    image: Tensor | None = None
    blocks: Sequence[Latents] = ()


class Generation:
    """Endless rollout of the student.

    Args:
        start: makes a fresh rollout under given text features, always with the same generator of
            random numbers.
        text: features of the prompt, batch 1.
        opening: first frame or blocks to begin with.
        overlay: adapters over the student; None for none.

    Attributes:
        index: index of the next block.
        scales: scales of the adapters.
        kept: latents that a rewrite repaints: the prefix, then whole cycles that cover the window.
    """

    def __init__(
        self,
        start: Callable[[TextFeatures], Rollout],
        text: TextFeatures,
        opening: Opening | None = None,
        overlay: Overlay | None = None,
    ) -> None:
        self._start, self._text, self._opening = start, text, opening or Opening()
        self._overlay = overlay or Overlay(())
        self.scales = self._overlay.scales
        with self._overlay.scaled(self.scales):
            self._rollout = start(text)
        self.kept: list[Latents] = []
        self.index = 0

    @torch.no_grad()
    def next(self) -> Latents:
        """Generate the next block: video latents ``[1, Tv, S, Cv]``, audio ``[1, Ta, Ca]``."""
        with self._overlay.scaled(self.scales):
            if self.index < len(self._opening.blocks):
                latents = self._rollout.follow(self._opening.blocks[self.index])
            elif self.index == 0 and self._opening.image is not None:
                latents = self._rollout.begin(self._opening.image)
            else:
                latents = next(self._rollout)
        self._keep(latents)
        self.index += 1
        return latents

    def change_scales(self, scales: Scales) -> None:
        """Lay the adapters over the student with other scales from the next block on.

        What the student remembers was made with the old ones and stays.
        """
        with self._overlay.scaled(self.scales):
            self._rollout.settle()
        self.scales = scales
        with self._overlay.scaled(scales):
            # Adapters change what the student makes of the prompt, too.
            self._rollout.switch(self._text)

    def _keep(self, latents: Latents) -> None:
        window, cycle = self._rollout.config.window, len(self._rollout.config.table.cycle)
        self.kept.append(latents)
        # A rewrite puts the kept blocks at the beginning of a stream, where the sizes of blocks
        # follow the cycle: only whole cycles may be dropped.
        if len(self.kept) - 1 >= window + cycle:
            del self.kept[1 : 1 + cycle]

    def change_prompt(self, text: TextFeatures, rewrite: bool = False) -> None:
        """Follow another prompt from the next block on.

        With ``rewrite`` the blocks in the student's memory (prefix and window) are generated again
        from a middle sigma under the new prompt (``Rollout.rewrite``), as if the stream had begun
        with such blocks. The change then shows at once; it costs as much as generating those
        blocks. Computing only their K/V again under the new prompt hardly makes a difference. A
        given first frame is repainted like the rest.

        Args:
            text: features of the prompt.
            rewrite: whether to rewrite the memory. Without effect while the stream repeats the
                clip that opens it, and for a student of one sigma, which has no middle sigma and
                would begin again from noise.
        """
        self._text, config = text, self._rollout.config
        with self._overlay.scaled(self.scales):
            if not rewrite or self.index < len(self._opening.blocks) or len(config.sigmas) == 1:
                self._rollout.switch(text)
                return
            self._rollout = self._start(text)
            self.kept = [self._rollout.rewrite(latents) for latents in self.kept]

    @property
    def can_be_saved(self) -> bool:
        """Whether the opening is over: until then, the state would have to hold the opening."""
        return self.index >= max(1, len(self._opening.blocks))

    def state(self) -> State:
        """Copy everything that the coming blocks depend on; requires ``can_be_saved``."""
        kept = {
            f"kept.{n}": dict(latents.map(torch.clone).items())
            for n, latents in enumerate(self.kept)
        }
        text = dict(self._text.map(torch.clone).items())
        with self._overlay.scaled(self.scales):
            rollout = self._rollout.state()
        # Absent without adapters, so that such states are those of earlier versions.
        scales = {"scales": torch.tensor(self.scales, dtype=torch.float64)} if self.scales else {}
        return {
            **join_states(text=text, rollout=rollout, **kept),
            "index": torch.tensor(self.index),
            **scales,
        }

    @classmethod
    def restore(
        cls,
        start: Callable[[TextFeatures], Rollout],
        state: State,
        overlay: Overlay | None = None,
    ) -> Generation:
        """Go on from a state; the coming blocks are the same, bit for bit."""
        generation = cls(start, Pair(**part_of(state, "text")), overlay=overlay)
        if generation.scales:
            generation.change_scales(tuple(state["scales"].tolist()))
        generation.index = int(state["index"])
        kept = part_of(state, "kept")
        generation.kept = [Pair(**part_of(kept, str(n))) for n in range(len(kept) // 2)]
        generation._rollout.restore(part_of(state, "rollout"))
        return generation
