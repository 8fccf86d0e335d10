"""Captions of a folder of videos.

- ``files``: ``Captions``, read from one file or from texts beside the videos
- ``names``: which name means which video

Imports ``core``, ``data.rejects`` and ``media``.
"""
