"""What everything else stands on: the block table, latents, formulas, configuration, files, errors.

Imports nothing of ours outside this room.
"""
