"""Streams that change their prompt on the way, second by second after each change.

``judges`` say whether a second is right; ``figures`` makes the interactive track of all of them.
"""
