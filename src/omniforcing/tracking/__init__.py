"""Where models are kept, as every room may need it: MLflow's store, its registry, the Hub.

- ``store``: where MLflow's store is, whether it answers, requests that end in a sentence.
- ``registry``: registered models, their versions and aliases, and the artifacts in them.
- ``description``: what MLflow's pages show of a model, its card and a sample.
- ``datasets``: MLflow's evaluation datasets, tables whose records its pages show.
- ``hub``: artifacts in repositories of the Hugging Face Hub, fetched and published.
- ``origin.artifact_folder``: the folder of an artifact, by any name that it goes by.

MLflow and huggingface_hub are imported when they are needed. Must not import any other room than
``core``.
"""
