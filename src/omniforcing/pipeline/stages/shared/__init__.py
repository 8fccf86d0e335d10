"""What several stages do alike: open data and models, train, publish, probe, log samples, time.

Imports every room below the pipeline; only modules of stages, and benchmarks, import it.
"""
