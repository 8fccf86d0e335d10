"""The world of bouncing balls: clips, what is seen and heard in them, event sync, the kept foundation.

Nothing of it is needed for LTX-2 and real clips.
"""
