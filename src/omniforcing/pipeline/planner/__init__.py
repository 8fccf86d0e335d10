"""Planner of a training's GPUs: memory and time of each stage before any is paid for.

- ``networks``: the stages' networks at their real sizes, without memory; ``trace``: a training step
  on torch's meta device; ``cost``: bytes per GPU and seconds per update from both.
- ``plan``: settings that fit a cluster, and the report of ``omniforcing plan``.
- ``stream``: memory of a stream of LTX-2's size.
- ``measured``: memory and time of real updates, to which a plan is held.
- ``compat``: private parts of torch that a trace needs.

Imports rooms up to ``distill``; must not import stages or the cluster.
"""
