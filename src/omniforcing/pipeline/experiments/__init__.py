"""The ablation and the DVC experiments it runs in.

`make ablation`.
"""
