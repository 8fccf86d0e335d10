"""What a stage is: declaration, generated dvc.yaml, code digests, MLflow runs, the runner.

``stages``, ``cluster``, ``planner`` and ``experiments`` are its rooms; nothing below imports it.
"""
