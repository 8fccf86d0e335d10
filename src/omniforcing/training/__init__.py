"""The training loop, checkpoints, optimisers, EMA and sharding that all trained networks share.

``codec`` trains VAEs and vocoder. What a method computes is in ``distill``.
"""
