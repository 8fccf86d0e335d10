"""Spans of a stream: one for the whole, one a block, and below that what the block went through.

A block's span lasts from the start of its generation until it was handed on. Its children are
``generate``, ``decode``, ``encode`` and, in a server, ``send``. Blocks overlap: one is decoded
while the next is generated. No span holds a prompt.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from omniforcing.evaluation.speed import BlockTiming
from omniforcing.media.marking import Mark

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP = "http/protobuf"


class StreamSpans:
    """Spans of one stream.

    Args:
        tracer: OpenTelemetry's tracer; None to make none.
        asked: ``time.perf_counter`` when the stream was asked for.
        attributes: of the stream's span.
    """

    def __init__(self, tracer: Any, asked: float, attributes: Mapping[str, Any]) -> None:
        self._tracer, self._asked = tracer, asked
        # Spans have the time of day, and everything here is measured by the other clock.
        self._offset = time.time_ns() - time.perf_counter_ns()
        self._stream = tracer and tracer.start_span(
            "stream", start_time=self._at(asked), attributes=dict(attributes)
        )

    def block(self, index: int, timing: BlockTiming, **parts: tuple[float, float]) -> None:
        """Make the spans of a block that was handed on.

        Args:
            index: index of the block.
            timing: when it was generated and decoded.
            parts: what came after, by name: ``time.perf_counter`` of its begin and its end.
        """
        if self._tracer is None:
            return
        generated, decoded = self._asked + timing.generated, self._asked + timing.elapsed
        all_parts = {
            "generate": (generated - timing.generate, generated),
            "decode": (decoded - timing.decode, decoded),
            **parts,
        }
        attributes = {
            "omniforcing.block": index,
            "omniforcing.frames": timing.frames,
            "omniforcing.waited_s": timing.waited,
        }
        begin, end = all_parts["generate"][0], max(end for _, end in all_parts.values())
        block = self._child("block", self._stream, begin, attributes)
        for name, (since, until) in all_parts.items():
            self._child(name, block, since).end(self._at(until))
        block.end(self._at(end))

    def close(self, reason: str) -> None:
        """End the stream's span.

        Args:
            reason: why it is over, such as ``ended``.
        """
        if self._stream is not None:
            self._stream.set_attribute("omniforcing.end", reason)
            self._stream.end()
            self._stream = self._tracer = None

    def _child(
        self, name: str, parent: Any, since: float, attributes: Mapping[str, Any] | None = None
    ) -> Any:
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(parent)
        return self._tracer.start_span(
            name, context, start_time=self._at(since), attributes=attributes
        )

    def _at(self, moment: float) -> int:
        return int(moment * 1e9) + self._offset


def begin(mark: Mark, asked: float | None) -> StreamSpans:
    """Begin the spans of a stream; they are none unless a collector is named.

    Args:
        mark: model and artifact of the stream.
        asked: ``time.perf_counter`` when the stream was asked for; None for no spans.
    """
    endpoint = _endpoint()
    if asked is None or endpoint is None or (provider := _provider(endpoint)) is None:
        return StreamSpans(None, 0.0, {})
    attributes = {"omniforcing.model": mark.model, "omniforcing.artifact": mark.artifact}
    return StreamSpans(provider.get_tracer("omniforcing"), asked, attributes)


def flush() -> None:
    """Wait until the collector has every span that has ended; what is left goes at exit."""
    endpoint = _endpoint()
    if endpoint is not None and (provider := _provider(endpoint)) is not None:
        provider.force_flush()


def _endpoint() -> str | None:
    return next(filter(None, map(os.environ.get, ENDPOINTS)), None)


@cache
def _provider(endpoint: str) -> Any:
    """OpenTelemetry's provider of tracers; None, after one sentence, where it cannot be used."""
    del endpoint  # the exporter reads the same variables, and others
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), HTTP)
    if protocol != HTTP:
        _tell(f"spans are sent by {HTTP} alone, not {protocol}; name a collector's HTTP port")
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        _tell(
            f"no spans are sent, the package {error.name} is missing; "
            "pip install 'omniforcing[telemetry]'"
        )
        return None
    name = os.environ.get("OTEL_SERVICE_NAME") or "omniforcing"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _tell(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr, flush=True)
