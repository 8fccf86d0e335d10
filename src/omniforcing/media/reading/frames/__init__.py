"""Decoded frames, one by one: colours, turns and fields as players show them.

- ``picture``: ``Picture``, a frame and when it is shown
- ``colour``: to RGB of BT.709
- ``upright``: turned as the file says
- ``fields``: two fields become one frame
- ``side_data``: what FFmpeg attaches to a frame

Imports ``core`` and, of the folder above, ``stated`` and ``tracks``.
"""
