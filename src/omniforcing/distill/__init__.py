"""One module per method: teacher, DMD, Stage I, trajectories, Stage II, Stage III, sampling.

Methods are plain modules; they run without Lightning.
"""
