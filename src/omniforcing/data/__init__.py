"""Data sets: from videos and captions to shards of clips, latents and trajectories.

- ``sources``, ``captions``: find clips and their captions; ``rejects``: what could not be used.
- ``shards``: clips in WebDataset tars; ``encode``: clips to latents; ``tensors``: tars of latents
  and trajectories, and their reader for training; ``tars``: the format below both.
- ``work``: how the shards of a stage are spread over workers; ``memory``: clips held in memory.
- ``inspect``: ``omniforcing inspect``.

Must not import ``training``, ``evaluation`` or ``streaming``.
"""
