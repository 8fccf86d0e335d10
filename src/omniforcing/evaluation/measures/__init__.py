"""Measures of any clips: is it in sync, is something wrong with picture or sound.

- ``base``: what a measure is, and a figure with its interval; ``registry``: all measures
- ``clips``: clips of a folder of videos, of shards, of an evaluation's page
- ``curves``: onsets of the sound, changes of motion in the picture
- ``together``, ``picture``, ``sound``: the measures that need no weights
- ``encoders``: the measures that need pretrained weights
- ``flags``: clips of a set that look wrong next to the others
- ``progress``: long clips, part by part
- ``tables``: sets of clips next to each other; ``compare``: two evaluations
- ``command``: ``omniforcing measure``

Unlike ``pocket``, nothing here knows what a clip should show. Must not import ``pipeline``.
"""
