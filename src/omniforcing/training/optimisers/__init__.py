"""Muon, and the states beside the weights: averages, and moments and averages in bf16.

AdamW is torch's; ``StageModule`` chooses. Must not import the stages' base or methods.
"""
