"""The pipeline: declared stages, run by DVC, tracked in MLflow.

- ``config``: the whole configuration; ``config_file``: ``conf/config.yaml`` generated from it.
- ``declaration``: what ``pipelines/stages.py`` says of each stage; ``generate``: ``dvc.yaml`` made
  from it; ``code``: the digest of the code that a stage depends on.
- ``stage``: a running stage, its lock and its work folder; ``tracking``: its MLflow run;
  ``processes``: calls in parallel processes.
- ``forking``: stages that begin with the libraries loaded.
- ``runner``: ``omniforcing run``; ``dry_run``: ``omniforcing run --dry-run``.
- Rooms within: ``stages``, ``cluster``, ``planner``, ``experiments``, ``release``.

May import every other room but ``cli``; none of them may import it.
"""
