#!/usr/bin/env bash
# One would guess: a PE-AV model of transformers that save_pretrained has written is read again by from_pretrained, with the
#   newest timm, from which its picture tower comes and for which transformers names no upper version.
# What happens: with timm 1.0.31 reading ends in an AttributeError on "bands": the newer tower keeps the bands of its rotary
#   embedding as a buffer that is not in the file, and transformers 5.23 sets what a file lacks as a parameter. With timm 1.0.26
#   the same folder is read.
# Versions: transformers 5.23.0, timm 1.0.31 and 1.0.26, torch 2.13.0. Seen 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 timm==1.0.31 numpy==2.4.6
cat > "$folder/try.py" <<'PY'
import sys

import torch

DECLARED = torch.library.Library("torchvision", "FRAGMENT")  # for a torchvision and a torch of unlike builds; no part of this
try:
    import torchvision
except RuntimeError:
    for name in ("nms", "qnms"):
        DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm
import transformers

width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
text = {**width, "model_type": "modernbert", "vocab_size": 9, "pad_token_id": 0, "bos_token_id": 0}
text |= {"eos_token_id": 1, "cls_token_id": 0, "sep_token_id": 1}
dac = {"encoder_hidden_size": 4, "downsampling_ratios": [2, 8, 10, 12], "hidden_size": 64, "codebook_dim": 16}
tower = {"architecture": "vit_pe_core_tiny_patch16_384", "num_classes": 2, "label_names": ["a", "b"]}
tower |= {"model_args": {"img_size": 32, "depth": 1}}
part = {**width, "head_dim": 8}
both = {**part, "audio_config": {**part, "dac_config": dac}, "video_config": {**part, "vision_config": tower}}
model = transformers.PeAudioVideoModel(transformers.PeAudioVideoConfig(text_config=text, audio_video_config=both)).eval()
model.save_pretrained(sys.argv[1])
try:
    transformers.PeAudioVideoModel.from_pretrained(sys.argv[1])
    found = "read again"
except AttributeError as error:
    found = f"AttributeError: {error}"
buffers = [name for name, _ in model.named_buffers() if name.endswith("bands")]
print("transformers", transformers.__version__, "timm", timm.__version__, "buffers:", buffers)
print(found)
assert found.startswith(sys.argv[2]), "this has changed"
PY
export HF_HUB_OFFLINE=1
"$folder/venv/bin/python" "$folder/try.py" "$folder/model" AttributeError
"$folder/venv/bin/pip" install --quiet timm==1.0.26
"$folder/venv/bin/python" "$folder/try.py" "$folder/model" "read again"
