"""Video files in and out: probe, decode, conform, encode and mux.

Works on arrays: frames uint8 ``[T, H, W, 3]`` and samples float32 ``[2, N]``.

- ``reading``: other people's files, by their own time stamps
- ``files``: ``read_mp4``, ``write_mp4`` for the project's own
- ``format``: ``ClipFormat`` of conformed clips
- ``mel``: ``log_mel``, ``resample``
- ``bt709``: ``Bt709`` converts pictures for an encoder and names their colours
- ``mux``: ``Muxer`` writes a stream as one fragmented MP4, whose boxes are in ``boxes``;
  ``picture`` leaves its sound out

Imports ``core`` alone. Must not import a codec, a model or any room above.
"""
