"""Streams from an artifact: engine, generation, decoding, steering, saved state.

- ``artifact.Artifact``: the folder that streams on its own; ``engine.Engine``: a loaded artifact.
- ``live.Stream``: a running stream, two threads; ``generation``, ``decoding``: what each runs.
- ``steering``: changes of prompt; ``state``: a stream saved at a border between blocks;
  ``opening``: first frames and clips to begin with.
- ``command``: ``omniforcing stream``; ``watermark``: a program's watermark in the sound;
  ``publishing``: the model card, ``push`` and ``pull``.

Must not import ``training``, ``data`` or the pipeline: an inference machine has torch, diffusers,
transformers and PyAV alone.
"""
