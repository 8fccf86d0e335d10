"""Clips in: sources, captions, rejects, shards of clips, shards of latents, inspection.

Must not import training, evaluation or streaming.
"""
