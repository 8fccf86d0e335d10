"""The training loop, checkpoints, optimisers, EMA and sharding that all trained networks share.

``StageModule`` is the base of the transformer stages, whose methods are in ``distill``; ``codec``
trains VAEs and vocoder; ``loop.fit`` trains either. The room must not import methods or pipeline.
"""
