"""The dual-stream transformer: blocks, attention views, K/V caches, rollout, stabilisers.

``DualStream`` runs LTX-2's modules for teacher, critic and student. ``block`` is the structure of
a transformer block, ``kernels`` the plain way to compute it, ``inference`` the fast one;
``weights`` reads and writes files. The room must not import training, methods or streaming.
"""
