"""Metrics of a server for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)


class Gauges:
    """Metrics in a registry of their own, so that several servers can run in one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.ready = Gauge(
            "omniforcing_ready", "whether a new session would be taken", registry=registry
        )
        self.sessions = Gauge("omniforcing_sessions", "sessions that are open", registry=registry)
        self.ended = Counter(
            "omniforcing_sessions_ended", "sessions that are over", ["reason"], registry=registry
        )
        self.refused = Counter(
            "omniforcing_refused", "connections that were refused", ["reason"], registry=registry
        )
        self.mistakes = Counter(
            "omniforcing_mistakes", "client messages answered by an error", registry=registry
        )
        self.blocks = Counter("omniforcing_blocks", "blocks sent", registry=registry)
        self.bytes = Counter("omniforcing_bytes", "bytes of media sent", registry=registry)
        self.prompts = Counter(
            "omniforcing_prompts", "changes of prompt that took effect", registry=registry
        )
        self.stalls = Counter(
            "omniforcing_stalls", "times that players ran dry, as they report it", registry=registry
        )
        self.model = Info(
            "omniforcing_model", "model that new sessions stream with", registry=registry
        )
        self.models = Gauge(
            "omniforcing_models",
            "models in memory: several while streams of an earlier one go on",
            registry=registry,
        )
        self.rollovers = Counter(
            "omniforcing_rollovers", "changes to another model", registry=registry
        )
        self.behind = Gauge(
            "omniforcing_behind",
            "whether the model that the alias names could not be taken at the last try",
            registry=registry,
        )
        self.first_chunk = Histogram(
            "omniforcing_first_chunk_seconds",
            "request to first moving chunk sent",
            buckets=_SECONDS,
            registry=registry,
        )
        self.block = Histogram(
            "omniforcing_block_seconds",
            "generation of a block",
            buckets=_SECONDS,
            registry=registry,
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
