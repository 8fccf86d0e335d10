"""Stages of the pipeline: one module per DVC stage, each with ``run(stage)``.

- ``clips``, ``shards``, ``codec``, ``latents``: data; ``causal_decoder``: an optional codec.
- ``teacher``, ``bidirectional_dmd``, ``trajectories``, ``causal_ode``, ``self_forcing``: training.
- ``evaluate``, ``export``: measures and the artifact.
- ``shared``: what several stages do alike.

``pipelines/stages.py`` declares what each stage reads and depends on. May import every room but
``cli``. Must not be imported by ``pipeline.stage``, ``cluster`` or ``cli``: the process that
launches or submits a stage need not load torch, so modules of stages are imported by name.
"""
