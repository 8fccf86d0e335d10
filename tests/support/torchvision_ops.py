"""pytest plugin: torchvision from PyPI next to a torch without CUDA.

Its extension is linked to CUDA and does not load there, but its Python part wants two of the
operators to exist when it is imported. They are declared here and never called.
"""

import torch
from torch.library import Library

if torch.version.cuda is None:
    DECLARED = Library("torchvision", "DEF")  # lives as long as the process
    for name in ("nms", "qnms"):
        DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
