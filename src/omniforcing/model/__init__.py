"""The dual-stream transformer: attention views, K/V caches, rollout, what a student adds to LTX-2.

``weights`` reads and writes its files, ``inference`` makes it fast; none of it knows training.
"""
