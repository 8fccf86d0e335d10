"""Fast layers, CUDA graphs, concurrent streams and fp8 for streams; equal to ``model`` up to rounding.

For inference alone: nothing here is trained.
"""
