"""What several stages do alike.

- ``training``: open shards and models, fit, publish the EMA weights, write curves.
- ``probe``: sync of a few samples during a training; ``samples``: a few samples in MLflow.
- ``factory``: samplers of all models; ``speed``: the streamed student against the teacher.

May import every room but ``cli``. Only stages, experiments and benchmarks may import it.
"""
