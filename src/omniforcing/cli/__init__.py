"""The command ``omniforcing``: options, help, and which function of the library does the work.

Every module here is light: functions import what they need when they run, so that help, shell
completion and mistakes need not wait for torch, and an inference machine can lack the pipeline's
packages. Nothing below imports this room.
"""

from omniforcing.cli.main import main

__all__ = ["main"]
