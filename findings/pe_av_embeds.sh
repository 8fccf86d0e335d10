#!/usr/bin/env bash
# One would guess: PeAudioVideoModel of transformers embeds a video, a sound or a text alone by its methods get_video_embeds,
#   get_audio_embeds, get_text_video_embeds and get_text_audio_embeds, as its forward says when it is given one of them only.
# What happens: get_audio_embeds works. The other three end in an AttributeError: they call methods of the parts that the
#   parts do not have. The parts' own encoders and heads can be called one by one.
# Versions: transformers 5.23.0, timm 1.0.26, torch 2.13.0. Seen 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 timm==1.0.26 numpy==2.4.6
cat > "$folder/try.py" <<'PY'
import torch

DECLARED = torch.library.Library("torchvision", "FRAGMENT")  # for a torchvision and a torch of unlike builds; no part of this
try:
    import torchvision
except RuntimeError:
    for name in ("nms", "qnms"):
        DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
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
words = torch.tensor([[2, 3, 4]])
inputs = {
    "get_audio_embeds": (torch.randn(1, 1, 19200),),
    "get_video_embeds": (torch.randn(1, 2, 3, 32, 32),),
    "get_text_video_embeds": (words, torch.ones_like(words)),
    "get_text_audio_embeds": (words, torch.ones_like(words)),
}
print("transformers", transformers.__version__)
found = {}
with torch.no_grad():
    for name, values in inputs.items():
        try:
            found[name] = str(tuple(getattr(model, name)(*values).shape))
        except AttributeError as error:
            found[name] = f"AttributeError: {error}"
        print(f"{name}: {found[name]}")
    pooled = model.video_model.video_encoder(pixel_values_videos=inputs["get_video_embeds"][0]).pooler_output
    print("video_head of the part's encoder:", tuple(model.video_model.video_head(pooled).shape))
assert not found.pop("get_audio_embeds").startswith("AttributeError"), "this has changed"
assert all(answer.startswith("AttributeError") for answer in found.values()), "this has changed"
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/try.py"
