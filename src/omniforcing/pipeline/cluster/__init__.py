"""Ray: reaching a cluster, launching workers, jobs, KubeRay manifests, pools.

No other room imports ray, but ``serving.ray_serve``.
"""
