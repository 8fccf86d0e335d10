"""Releases: a candidate against the model version that holds the registry's alias ``champion``.

- ``rules``: ``conf/release.yaml``, what may not get worse and by how much.
- ``gate``: two evaluations of the same captions and seeds, judged by the rules.
- ``release``: ``omniforcing release``: judge, write the page, move the alias.

Must not import ``pipeline.stages`` or ``pipeline.planner``.
"""
