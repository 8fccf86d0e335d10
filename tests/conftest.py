"""One torch thread for every test: tiny models are many times slower with two on a busy machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests.support.videos import make_video  # noqa: F401  # a fixture

torch.set_num_threads(1)
