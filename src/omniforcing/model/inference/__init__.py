"""Fast kernels, CUDA graphs, concurrent streams and fp8 for streams.

``accelerate`` makes a fast student; its blocks equal the plain ones up to rounding. For inference
alone: nothing here is trained.
"""
