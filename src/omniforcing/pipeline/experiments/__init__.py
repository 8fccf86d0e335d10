"""Experiments with trained students: the ablation, whose variants are DVC experiments, and streams.

- ``variants``: which there are, in groups, and under which training seed.
- ``ablation``: train those that are missing, write the table.
- ``experiments``: DVC experiments in a private clone of the checkout.
- ``generated``: clips that an artifact makes, for ``omniforcing measure``.
- ``scenario``, ``play``: streams of timed prompt changes, for ``omniforcing play``.
- ``measure``: a variant's figures, taken with the samplers and settings of stage ``evaluate``;
  ``compare``: what training and stream of all rows cost.

Started by ``omniforcing ablation`` and ``make ablation``.
"""
