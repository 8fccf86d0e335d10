"""What the trained stages do alike: open data and models, train, publish, probe, measure speed.

One script per stage in pipelines/ calls it.
"""
