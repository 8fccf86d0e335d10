"""MLflow's store as every room may need it: its address, and the models that it holds.

- ``store``: where the store is, whether it answers, requests that end in a sentence.
- ``registry``: registered models, their versions and aliases, and the artifacts in them.

MLflow is imported when it is needed. Must not import any other room than ``core``.
"""
