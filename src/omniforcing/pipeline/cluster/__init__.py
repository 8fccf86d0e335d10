"""Ray clusters: run a stage's training or its shards on other machines.

- ``config``: section ``cluster`` of the configuration; ``connect``: reach a cluster and check it.
- ``launch``: a training in Ray Train's workers; ``pool``: shards made by Ray actors.
- ``jobs``: a whole stage as a Ray job; ``kuberay``: the same as a manifest for Kubernetes.

Results do not depend on where a stage runs. Ray is imported inside functions, so that a run without
a cluster does not load it. Must not import ``pipeline.stages``, ``planner`` or ``experiments``.
"""
