"""Streaming joint audio-video generation: distil an LTX-2 teacher into a block-causal student."""

__version__ = "0.1.0"
