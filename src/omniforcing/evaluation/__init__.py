"""Evaluation: sample the trained models, measure their clips, draw and publish the results.

- ``samplers``: ``SamplerFactory`` turns folders of models into samplers of clips
- ``evaluate``: ``evaluate`` runs all models on the same captions and seeds
- ``summary``, ``quality``, ``nearest``, ``reconstruction``: the figures
- ``speed``: speed of streams; torch and numpy alone, for inference machines
- ``report``, ``ablation``, ``plots``, ``curves``: pages, plots and JSON
- ``measures``: what can be measured of any clips

Measures of the pocket world's events are in ``pocket``. Must not import ``streaming``, ``serving``
or ``pipeline``.
"""
