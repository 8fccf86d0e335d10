"""What this project does on a GPU, in one command: `python -m benchmarks.gpu`.

Parts run one after the other, most valuable first, each in a process of its own with a share of the
minutes. Torch, transformers, safetensors and numpy are enough to start. What a measurement needs
beyond them is imported where it is used, and its absence is a row of the table. No module here
imports the training tools. docs/how-to/gpu-check.md has the protocol.
"""
