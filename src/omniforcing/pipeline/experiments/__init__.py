"""The stage ablation: train variants of a preset as DVC experiments, measure their students.

- ``ablation``: which variants there are; train those that are missing, write the table.
- ``experiments``: DVC experiments in a private clone of the checkout.
- ``generated``: clips that an artifact makes, for ``omniforcing measure``.
- ``measure``: a variant's figures, taken with the samplers and settings of stage ``evaluate``.

Started by ``omniforcing ablation`` and ``make ablation``. Must not import ``pipeline.planner``.
"""
