"""The artifact and the engine: generation, decoding, steering and saved states of a stream.

Needs no training tools; ``command`` is `omniforcing stream`.
"""
