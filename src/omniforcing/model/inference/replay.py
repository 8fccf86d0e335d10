"""Forwards recorded once and replayed operation by operation, on a CPU.

At small sizes a forward's time is Python and small tensors made anew: modules, views and
allocations between a few hundred kernels. A replay calls the same kernels in the same order on
memory that stays in place. What differs from one forward to the next (adaLN parameters of a
sigma, slices of the cache, the prompt's keys and values) is bound into the recording by
reference, so that one recording serves all blocks of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from omniforcing.core.latents import Latents
from omniforcing.core.pair import Pair
from omniforcing.model.attention import View
from omniforcing.model.cache import RingView
from omniforcing.model.conditioning import Conditioning, Sigma, TextCache
from omniforcing.model.inference.recording import NotReplayable, Operation, Plan, Recording

Model = Callable[[Latents, Sigma, TextCache, View], Latents]
# A function, its positional and its named arguments.
Call = tuple[Callable[..., object], Sequence[Any], Mapping[str, Any]]


class Recorded(NamedTuple):
    """A recorded forward, which streams of one student share.

    Attributes:
        recording: its operations.
        inputs: numbers of its latents.
        results: numbers of its velocity.
        plan: where a replay writes.
    """

    recording: Recording
    inputs: Pair[int]
    results: Pair[int]
    plan: Plan


class Replay:
    """A recorded forward with memory of its own, that can be bound to given tensors and run.

    Args:
        recorded: the forward.
        arena: pieces of memory by size, which replays that never run at the same time share; what
            it lacks is added.
    """

    def __init__(self, recorded: Recorded, arena: dict[int, list[Tensor]]) -> None:
        recording, plan = recorded.recording, recorded.plan
        self._given = recording.given
        pieces, taken = [], dict.fromkeys(plan.bytes, 0)
        for size in plan.bytes:
            held, taken[size] = arena.setdefault(size, []), taken[size] + 1
            if len(held) < taken[size]:
                held.append(torch.empty(size, dtype=torch.uint8))
            pieces.append(held[taken[size] - 1].untyped_storage())
        self._places: dict[int, Tensor] = {}
        for number, slot in plan.slots.items():
            layout = recording.layouts[number]
            empty = torch.empty(0, dtype=layout.dtype)
            place = empty.set_(pieces[slot], 0, layout.size, layout.stride)
            self._places[number] = place
        self._tensors = {**recording.constants, **self._places}
        for number in recorded.inputs:
            self._tensors[number] = torch.empty_like(recording.constants[number])
        self._read = {*recorded.results}
        for operation in recording.operations:
            self._read.update(operation.read)
        self._calls: list[Call] = []
        # Operations that the tensors of each group take part in, with their place among the calls;
        # None for views, which are made when the tensors are known.
        self._open: list[list[tuple[Operation, int | None]]] = [[] for _ in self._given]
        group_of = {number: group for group, given in enumerate(self._given) for number in given}
        for operation in recording.operations:
            index = None if operation.views else len(self._calls)
            groups = {group_of[number] for number in operation.read if number in group_of}
            if groups:
                # Of two groups, the one bound last would win: a kernel never joins them.
                (group,) = groups
                self._open[group].append((operation, index))
                if index is None:
                    group_of.update(dict.fromkeys(operation.results, group))
                else:
                    self._calls.append(_NOTHING)
            elif index is None:
                self._view(operation, self._tensors)
            else:
                self._calls.append(self._call(operation, self._tensors))
        self.inputs = [self._tensors[number] for number in recorded.inputs]
        self.results = [self._tensors[number] for number in recorded.results]

    def bind(self, group: int, given: Iterable[Tensor]) -> dict[int, Call]:
        """The calls that tensors of a group take part in, by their place."""
        tensors = {**self._tensors, **dict(zip(self._given[group], given, strict=True))}
        calls: dict[int, Call] = {}
        for operation, index in self._open[group]:
            if index is None:
                self._view(operation, tensors)
            else:
                calls[index] = self._call(operation, tensors)
        return calls

    def calls(self, *bound: dict[int, Call]) -> list[Call]:
        """All calls of a forward, with those that were bound for each group."""
        calls = list(self._calls)
        for group in bound:
            for index, call in group.items():
                calls[index] = call
        return calls

    @staticmethod
    def _view(operation: Operation, tensors: dict[int, Tensor]) -> None:
        arguments, options = operation.filled(tensors)
        views = operation.function(*arguments, **options)
        views = views if isinstance(views, tuple | list) else [views]
        tensors.update(zip(operation.results, views, strict=True))

    def _call(self, operation: Operation, tensors: dict[int, Tensor]) -> Call:
        arguments, options = operation.filled(tensors)
        if operation.mutates:
            return operation.function, arguments, options
        places = [self._places[n] if n in self._read else None for n in operation.results]
        into = _into(operation.function)
        if into is None:
            return _copied, (operation.function, arguments, options, places), {}
        function, name = into
        return function, arguments, {**options, name: places[0]}


_NOTHING: Call = (lambda: None, (), {})


@cache
def _into(function: Any) -> tuple[Any, str] | None:
    """The overload that writes into given memory, and that argument's name; None without one."""
    wanted = [(a.name, str(a.type)) for a in function._schema.arguments]
    for name in function.overloadpacket.overloads():
        overload = getattr(function.overloadpacket, name)
        places = [a.name for a in overload._schema.arguments if a.is_out]
        own = [(a.name, str(a.type)) for a in overload._schema.arguments if not a.is_out]
        if len(places) == 1 and own == wanted:
            return overload, places[0]
    return None


def _copied(
    function: Any,
    arguments: Sequence[Any],
    options: Mapping[str, Any],
    places: Sequence[Tensor | None],
) -> None:
    """Run an operation without such an overload."""
    results = function(*arguments, **options)
    results = results if isinstance(results, tuple | list) else [results]
    for place, result in zip(places, results, strict=True):
        if place is not None:
            place.copy_(result)


class ForwardReplay:
    """Replays a student's forwards on a CPU; callable like the student.

    All views must be of one cache. What has no recording runs as it is: the beginning of a stream,
    conditions that are not prepared, other views than those of a ring.

    Args:
        model: the student.
        recordings: forwards recorded before, by structure; new ones are added. None: record anew
            for every prompt.
    """

    def __init__(self, model: Model, recordings: dict[Hashable, Recorded | None] | None) -> None:
        self.model, self._shared = model, recordings is not None
        self._recordings = {} if recordings is None else recordings
        self._arena: dict[int, list[Tensor]] = {}
        self._text: TextCache | None = None
        self._replays: dict[Hashable, Replay] = {}
        self._bound: dict[Hashable, dict[int, Call]] = {}
        self._calls: dict[Hashable, tuple[Replay, list[Call]]] = {}

    def __call__(self, x: Latents, sigma: Sigma, text: TextCache, view: View) -> Latents:
        """Velocity of latents, as the student gives it."""
        if text is not self._text:
            self._text, self._bound, self._calls = text, {}, {}
            if not self._shared:
                self._recordings, self._replays = {}, {}
        key = (view.graph_key, sigma)
        if key not in self._calls:
            conditioning = text.prepared(sigma, len(x.video))
            # Block 0 is one of its kind, and a recording would only delay the first that moves.
            if conditioning is None or not isinstance(view, RingView) or view.index == 0:
                return self.model(x, sigma, text, view)
            shapes = conditioning.text[0].map(lambda key_value: key_value.keys.shape)
            structure = (view.structure, x.video.shape, shapes)
            if structure not in self._recordings and view.index > 1:
                given = (conditioning.tensors(), view.tensors())
                recorded, out = _record(self.model, given, x, sigma, text, view)
                self._recordings[structure] = recorded
                return out
            recorded = self._recordings.get(structure)
            if recorded is None:
                return self.model(x, sigma, text, view)
            if structure not in self._replays:
                self._replays[structure] = Replay(recorded, self._arena)
            replay = self._replays[structure]
            # All blocks share a sigma's, and all steps a block's.
            sources: tuple[Conditioning | RingView, ...] = (conditioning, view)
            bound = []
            for group, name in enumerate((sigma, view.graph_key)):
                place = (structure, group, name)
                if place not in self._bound:
                    self._bound[place] = replay.bind(group, sources[group].tensors())
                bound.append(self._bound[place])
            self._calls[key] = replay, replay.calls(*bound)
        replay, calls = self._calls[key]
        for latents, value in zip(replay.inputs, x, strict=True):
            latents.copy_(value)
        for function, arguments, options in calls:
            function(*arguments, **options)
        # A copy: the next replay overwrites the results.
        video, audio = replay.results
        return Pair(video.clone(), audio.clone())


def _record(
    model: Model,
    given: Iterable[Iterable[Tensor]],
    x: Latents,
    sigma: Sigma,
    text: TextCache,
    view: View,
) -> tuple[Recorded | None, Latents]:
    """Run a forward and record it; returns the recording, if it can be replayed, and velocity."""
    inputs, recording = x.map(Tensor.clone), Recording(given)
    try:
        with recording:
            out = model(inputs, sigma, text, view)
    except NotReplayable:
        return None, model(x, sigma, text, view)
    results = out.map(recording.number)
    plan = Plan.of(recording, results)
    return Recorded(recording, inputs.map(recording.number), results, plan), out
