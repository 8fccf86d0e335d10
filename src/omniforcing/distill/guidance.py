"""Classifier-free guidance of a teacher, for sampling from it and for scores by it."""

from __future__ import annotations

import torch
from torch import Tensor

from omniforcing.core.latents import Latents, TextFeatures
from omniforcing.core.pair import Pair
from omniforcing.core.schedule import guide
from omniforcing.model.attention import View
from omniforcing.model.conditioning import TextCache
from omniforcing.model.rollout import predict_x0
from omniforcing.model.transformer import DualStream


def cache_guided(teacher: DualStream, text: TextFeatures, unconditional: TextFeatures) -> TextCache:
    """Cache text for ``guided_x0``: B captions, then the empty prompt B times."""
    both = text.map(lambda c, u: torch.cat([c, u.to(c).expand_as(c)]), unconditional)
    return teacher.cache_text(both)


def guided_x0(
    teacher: DualStream, x: Latents, sigma: Tensor, text: TextCache, scale: Pair[Tensor], view: View
) -> Latents:
    """The teacher's clean estimate with classifier-free guidance.

    Args:
        x: noised latents ``[B, T, ...]``.
        sigma: noise levels ``[B]``.
        text: from ``cache_guided``; the conditional and the unconditional pass go as one batch.
        scale: guidance scales ``[B]`` per modality.
        view: which keys the queries see.
    """
    twice = x.map(lambda a: torch.cat([a, a]))
    x0 = predict_x0(teacher, twice, torch.cat([sigma, sigma]), text, view)

    def combine(a: Tensor, w: Tensor) -> Tensor:
        conditional, unconditional = a.chunk(2)
        return guide(conditional, unconditional, w)

    return x0.map(combine, scale)


def guided_x0_in_turn(
    teacher: DualStream,
    x: Latents,
    sigma: Tensor,
    text: TextFeatures,
    unconditional: TextFeatures,
    scale: Pair[Tensor],
    view: View,
) -> Latents:
    """``guided_x0`` with one pass after the other: half the memory, and no prompt kept.

    Args:
        text: features ``[B, L, D]`` of the captions.
        unconditional: features ``[1, L, D]`` of the empty prompt.
    """
    conditional = predict_x0(teacher, x, sigma, teacher.cache_text(text), view)
    empty = text.map(lambda c, u: u.to(c).expand_as(c), unconditional)
    none = predict_x0(teacher, x, sigma, teacher.cache_text(empty), view)
    return conditional.map(guide, none, scale)
