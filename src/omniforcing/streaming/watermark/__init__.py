"""Watermarks of a stream's sound, by a TorchScript program that the user names with its sha256.

- ``watermark.Watermark``: an opened and checked program; its ``begin`` gives a ``MarkedSound``, the
  state of one stream, which takes sound piece by piece and gives it back with the watermark in it.
- ``detector``: finds the watermark in a clip, by a second program.
- ``resampling``: band-limited resampling without delay, for streams at other rates than 16 kHz.

Must not import ``live``, ``engine`` or ``command``.
"""
