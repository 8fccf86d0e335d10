"""The command ``omniforcing``: its options, its help, and the library's function that it calls.

- ``main``: runs one command; its function ``main`` is the public name.
- ``pipeline``, ``plan``, ``cluster``, ``data``, ``measure``, ``streaming``, ``doctor``,
  ``completion``: the commands.
- ``command``: commands with examples and short errors; ``options``: what several commands take.

Modules here import the library inside functions only: help, shell completion and errors of the
command line need not wait for torch, and an inference machine can lack the pipeline's packages.
No room may import this one.
"""

from omniforcing.cli.main import main

__all__ = ["main"]
