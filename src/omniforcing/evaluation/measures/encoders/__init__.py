"""Measures with pretrained weights, which lie in a folder or file that the user names.

- ``weights``: which weights there are, by path and sha256; nothing is ever downloaded
- ``models``: encoders of `transformers`; ``programs``: TorchScript files
- ``similarity``: does the clip show what its caption says, does its subject stay the same
- ``motion``: how much moves
- ``speech``: is what a caption quotes said
- ``distances``: Frechet and kernel distances between sets of clips
- ``sync``: DeSync, and the likeness of picture and sound

Must not import ``omniforcing.evaluation.evaluate``.
"""
