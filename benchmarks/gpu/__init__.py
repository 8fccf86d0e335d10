"""What this project does on a GPU, in one command: ``python -m benchmarks.gpu`` (docs/how-to/gpu-check.md has the protocol).

The parts run one after the other, each in a process of its own with a share of the minutes, most valuable first.
Torch, transformers, safetensors and numpy are enough to start; what a measurement needs beyond that is imported
where it is used, and its absence is a row of the table. No module here imports the training tools.
"""
