"""Spans of streams, as a collector gets them; a machine without OpenTelemetry streams on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from omniforcing.cli import main
from omniforcing.evaluation.speed import BlockTiming
from omniforcing.media.marking import Mark
from omniforcing.streaming.artifact import Artifact
from omniforcing.streaming.engine import Engine
from omniforcing.streaming.telemetry import spans
from tests.support.collector import Collector, collecting
from tests.support.serving import play, server
from tests.support.streams import PROMPT

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def values(span: Any) -> dict[str, Any]:
    """Attributes of a span."""
    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in span.attributes}


def stream(artifact: Artifact, out: Path) -> int | str | None:
    """Exit code of a clip of two seconds: the prefix and two blocks."""
    words = ["stream", "--artifact", str(artifact.folder), "--prompt", PROMPT, "--seconds", "2"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--out", str(out)])
    return end.value.code


def check_blocks(collector: Collector, parts: list[str]) -> None:
    """Every block has its parts in order, below the stream's span."""
    (whole,) = collector.named("stream")
    blocks = collector.named("block")
    assert sorted(values(block)["omniforcing.block"] for block in blocks) == [0, 1, 2]
    for block in blocks:
        assert block.parent_span_id == whole.span_id and block.trace_id == whole.trace_id
        children = [s for s in collector.spans if s.parent_span_id == block.span_id]
        children.sort(key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))
        assert [child.name for child in children] == parts
        begins = [child.start_time_unix_nano for child in children]
        ends = [child.end_time_unix_nano for child in children]
        assert begins[0] == block.start_time_unix_nano >= whole.start_time_unix_nano
        assert ends[-1] == block.end_time_unix_nano <= whole.end_time_unix_nano
        # Nanoseconds from sums of seconds: right to a microsecond.
        assert all(end <= begin + 1000 for end, begin in zip(ends[:-1], begins[1:], strict=True))


def test_a_clip_sends_a_span_for_every_block_and_its_parts(
    artifact: Artifact, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as collector:
        monkeypatch.setenv(ENDPOINT, collector.url)
        assert stream(artifact, tmp_path / "clip.mp4") == 0
        spans.flush()
    check_blocks(collector, ["generate", "decode", "encode"])
    told = values(collector.named("stream")[0])
    assert told == {
        "omniforcing.model": "smoke",
        "omniforcing.artifact": engine.digest,
        "omniforcing.end": "ended",
    }
    assert collector.services == {"omniforcing"}
    assert PROMPT not in str(collector.spans)


@pytest.mark.extended
def test_a_session_sends_spans_with_its_sending(artifact: Artifact, tmp_path: Path) -> None:
    with collecting() as collector:
        variables = {ENDPOINT: collector.url, "OTEL_SERVICE_NAME": "stage-left"}
        with server(artifact.folder, tmp_path, **variables) as running, running.connect() as client:
            play(client, 2)
        # The server has ended, which sends what is left.
        check_blocks(collector, ["generate", "decode", "encode", "send"])
        assert collector.services == {"stage-left"}


@pytest.mark.parametrize(
    ("variables", "module", "fact"),
    [
        ({}, "opentelemetry.sdk.trace", "omniforcing[telemetry]"),
        ({}, "opentelemetry.exporter.otlp.proto.http.trace_exporter", "omniforcing[telemetry]"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "none", "http/protobuf"),
    ],
)
def test_where_spans_cannot_be_sent_one_sentence_says_so_and_the_stream_goes_on(
    variables: dict[str, str],
    module: str,
    fact: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {ENDPOINT: f"http://127.0.0.1:1/{module}/{fact}", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, module, None)
    for _ in range(2):
        traced = spans.begin(Mark(), 0.0)
        traced.block(0, BlockTiming(1, 0.1, 0.1, 0.2), encode=(0.2, 0.3))
        traced.close("ended")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and fact in said
