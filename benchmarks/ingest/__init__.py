"""Check what the ingest makes of people's files, kind by kind (`python -m benchmarks.ingest`)."""
