"""Foundations of every other room.

- ``layout``: the block table and LTX-2's rates; ``pair``: a value for video and one for audio;
  ``latents``: pairs of tensors; ``schedule``: flow matching, sigmas, guidance.
- ``random``: seeds per step; ``distributed``: processes that train together; ``states``: named
  tensors to save.
- ``config``: sections, ranges, loading; ``files``: atomic writing; ``errors``, ``console``: what
  users see; ``environment``: our environment variables.

Must not import any other room.
"""
