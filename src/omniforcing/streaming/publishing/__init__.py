"""Artifacts handed on: the model card that other tools read, and copies on the Hub or in a folder.

- ``card``: README.md of an artifact, with the front matter of the Hub.
- ``push.push``, ``push.pull``: ``omniforcing push`` and ``omniforcing pull``.
"""
