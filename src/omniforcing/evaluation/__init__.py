"""Samplers of the trained models, measures, the evaluation page and plots.

Measures of the pocket world itself are in ``pocket``.
"""
