"""Models that make a clip whole, served beside a student that streams.

- ``teacher``: the pocket world's teacher, ``omniforcing serve --beside teacher``.

Imports ``distill``, ``evaluation``, ``streaming`` and rooms below; nothing of the rest of
``serving``, whose sessions call it as they call an ``Engine``.
"""
