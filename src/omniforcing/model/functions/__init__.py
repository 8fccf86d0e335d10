"""Element-wise functions of a block with derivatives of their own.

``few_passes`` serves the plain kernels and the RoPE tables. Must not import the rest of the model.
"""
