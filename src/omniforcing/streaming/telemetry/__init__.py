"""OpenTelemetry spans of streams, sent where ``OTEL_EXPORTER_OTLP_ENDPOINT`` says.

- ``spans.begin``: the spans of one stream; none without that variable.

OpenTelemetry is imported when the variable is set, and a machine without it streams on.
"""
