"""Video files in and out: probe, decode, conform, encode and mux.

Works on arrays: frames uint8 ``[T, H, W, 3]`` and samples float32 ``[2, N]``.

- ``probe``: ``probe`` reads the properties of a file, ``Rejected`` says why one cannot be used
- ``files``: ``read_video``, ``read_audio``, ``read_mp4``, ``write_mp4``
- ``conform``: ``ClipCutter`` cuts any video into clips of one ``ClipFormat``
- ``mel``: ``log_mel``, ``resample``
- ``mux``: ``Muxer`` writes a stream as one fragmented MP4, whose boxes are in ``boxes``

Imports ``core`` alone. Must not import a codec, a model or any room above.
"""
