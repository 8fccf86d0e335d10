"""Tiny random encoders in the formats in which theirs are published, and clips for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from omniforcing.core.files import sha256_file
from omniforcing.core.pair import Pair
from omniforcing.evaluation.measures.base import Measured, figures_of, observe_clips
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.weights import Weights
from omniforcing.evaluation.measures.registry import chosen_measures

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
WORDS = ["<|startoftext|>", "<|endoftext|>", *(f"{name}</w>" for name in (*COLOURS, "ball"))]


def coloured(index: int, seconds: int = 2, caption: str | None = None) -> Clip:
    """A clip of one colour, with noise of its own."""
    name = list(COLOURS)[index % len(COLOURS)]
    generator = np.random.default_rng(index)
    frames = np.empty((1 + 24 * seconds, 32, 48, 3), np.uint8)
    frames[:] = np.clip(COLOURS[name] + generator.integers(-20, 20, (32, 48, 1)), 0, 255)
    sound = generator.normal(0, 0.1, (2, 16000 * seconds)).astype(np.float32)
    return Clip(str(index), Pair(frames, sound), caption or f"{name} ball")


def tokenizer(folder: Path) -> None:
    """A tokenizer of a few words, in CLIP's format."""
    from transformers import CLIPTokenizer

    vocabulary = folder / "vocab.json"
    letters = sorted({letter for word in WORDS for letter in word.removesuffix("</w>")})
    known = [*WORDS, *letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in (*COLOURS, "ball"):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = ["".join(parts[:2]), *parts[2:]]
            known.append(parts[0])
    pairs = list(dict.fromkeys(known))
    vocabulary.write_text(json.dumps({word: index for index, word in enumerate(pairs)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)))
    CLIPTokenizer(str(vocabulary), str(folder / "merges.txt")).save_pretrained(folder)


def tiny_clip(folder: Path) -> None:
    """CLIP whose projection of pictures is a linear probe: colours lie at their captions."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "projection_dim": 12}
    text = {**small, "vocab_size": 60, "max_position_embeddings": 16, "eos_token_id": 1}
    vision = {**small, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    model.save_pretrained(folder)
    tokenizer(folder)
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    from omniforcing.evaluation.measures.encoders.models import OPENAI, pictures

    seen, said = [], []
    with torch.no_grad():
        for index in range(9):
            clip = coloured(index)
            pixels = pictures(clip.media.video[:1], 32, *OPENAI)
            seen.append(model.vision_model(pixels).pooler_output[0])
            tokens = words([clip.caption], return_tensors="pt")
            said.append(model.get_text_features(**tokens).pooler_output[0])
        wanted = torch.stack(said) - torch.stack(said).mean(0)
        model.visual_projection.weight.copy_(torch.linalg.lstsq(torch.stack(seen), wanted)[0].T)
    model.save_pretrained(folder)


def tiny_clap(folder: Path) -> None:
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 60}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 90, "projection_dim": 8}
    audio = {"patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1]}
    audio |= {"num_attention_heads": [2, 2], "num_hidden_layers": 2, "projection_dim": 8}
    torch.manual_seed(0)
    ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=8)).save_pretrained(
        folder
    )
    ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad").save_pretrained(folder)
    tokenizer(folder)


def tiny_dinov2(folder: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.image_size = 28
    Dinov2Model(config).save_pretrained(folder)


def tiny_vjepa2(folder: Path) -> None:
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    small = {"crop_size": 32, "frames_per_clip": 4, "hidden_size": 24, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "pred_hidden_size": 24, "pred_num_hidden_layers": 1}
    VJEPA2Model(VJEPA2Config(**small, pred_num_attention_heads=2)).save_pretrained(folder)


def tiny_whisper(folder: Path) -> None:
    from transformers import AutoTokenizer, WhisperConfig, WhisperFeatureExtractor
    from transformers import WhisperForConditionalGeneration as Whisper

    torch.manual_seed(1)
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 80}
    small |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 60}
    small |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_target_positions": 12}
    small |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    model = Whisper(WhisperConfig(**small, suppress_tokens=None, begin_suppress_tokens=None))
    tokenizer(folder)
    known = len(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    # What is said is words, not the signs of begin and end.
    model.generation_config.suppress_tokens = [0, 1, *range(known, 60)]
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


def tiny_pe_av(folder: Path) -> None:
    """PE-AV, which needs timm for its picture tower."""
    from transformers import (
        PeAudioFeatureExtractor,
        PeAudioVideoConfig,
        PeAudioVideoModel,
        PeVideoVideoProcessor,
    )

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    tower = {"architecture": "vit_pe_core_tiny_patch16_384", "num_classes": 8}
    tower |= {"label_names": list("abcdefgh"), "model_args": {"img_size": 32, "depth": 1}}
    sound = {"encoder_hidden_size": 4, "downsampling_ratios": [2, 8, 10, 12], "hidden_size": 64}
    signs = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    signs |= {"cls_token_id": 0, "sep_token_id": 1}
    both = {**small, "head_dim": 8}
    config = PeAudioVideoConfig(
        text_config={"model_type": "modernbert", **small, **signs, "vocab_size": 60},
        audio_video_config={
            **both,
            "audio_config": {**both, "dac_config": {**sound, "codebook_dim": 16}},
            "video_config": {**both, "vision_config": tower},
        },
    )
    torch.manual_seed(0)
    model = PeAudioVideoModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # large enough for an input to be felt at the end
                nn.init.xavier_normal_(parameter)
    model.save_pretrained(folder)
    tokenizer(folder)
    PeAudioFeatureExtractor().save_pretrained(folder)
    grey, steps = [0.5] * 3, dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True)
    size = {"height": 32, "width": 32}
    PeVideoVideoProcessor(size=size, image_mean=grey, image_std=grey, **steps).save_pretrained(
        folder
    )


class I3d(nn.Module):
    """Stand-in of the published I3D file's signature."""

    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert return_features and not rescale and not resize
        return video.mean(dim=(3, 4)).flatten(1)


class Synchformer(nn.Module):
    """Finds a bright frame and a loud sample: the offset of one from the other."""

    def forward(self, video: Tensor, sound: Tensor) -> Tensor:
        bright = video.mean(dim=(3, 4, 5))[0].flatten().argmax()
        seen = (bright // 16 * 8 + bright % 16) / 25.0
        loud = sound[0].abs().flatten().argmax()
        heard = (loud // 10240 * 5120 + loud % 10240) / 16000.0
        offsets = torch.linspace(-2.0, 2.0, 21)
        return -(offsets - (heard - seen)).abs()[None]


class Flow(nn.Module):
    """The whole picture moves as its centre of brightness does."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        rows = torch.arange(first.shape[2]).view(1, 1, -1, 1)
        columns = torch.arange(first.shape[3])
        found: list[Tensor] = []
        for places in (columns, rows):
            a = (first * places).sum((1, 2, 3)) / first.sum((1, 2, 3)).clamp(min=1e-6)
            b = (second * places).sum((1, 2, 3)) / second.sum((1, 2, 3)).clamp(min=1e-6)
            found.append(b - a)
        flow = torch.stack(found, 1)[:, :, None, None]
        return flow.expand(-1, -1, first.shape[2], first.shape[3])


class PairEncoder(nn.Module):
    """Bright frames and loud sounds point the same way."""

    @torch.jit.export
    def frames(self, frames: Tensor) -> Tensor:
        level = frames.mean(dim=(1, 2, 3))
        return torch.stack([level, 1 - level], 1)

    @torch.jit.export
    def sound(self, sound: Tensor) -> Tensor:
        level = sound.abs().mean(1).clamp(0, 1)
        return torch.stack([level, 1 - level], 1)


FOLDERS = {"clip": tiny_clip, "clap": tiny_clap, "dinov2": tiny_dinov2, "vjepa2": tiny_vjepa2}
FOLDERS["whisper"] = tiny_whisper
PROGRAMS: dict[str, type[nn.Module]] = {
    "i3d": I3d,
    "raft": Flow,
    "synchformer": Synchformer,
    "pair": PairEncoder,
}


def write_weights(root: Path) -> Path:
    """Write all of them, and the file that names them."""
    lines = []
    for name, write in FOLDERS.items():
        (root / name).mkdir()
        write(root / name)
        digest = sha256_file(root / name / "model.safetensors")
        lines.append(f"{name}: {{path: {name}, sha256: {digest}}}")
    for name, kind in PROGRAMS.items():
        torch.jit.script(kind()).save(root / f"{name}.pt")
        lines.append(f"{name}: {{path: {name}.pt, sha256: {sha256_file(root / f'{name}.pt')}}}")
    file = root / "weights.yaml"
    file.write_text("\n".join(lines))
    return file


def measure(
    weights: Weights, clips: list[Clip], *names: str, against: list[Clip] | None = None
) -> Measured:
    measures = chosen_measures(names, weights)
    others = observe_clips(against, measures) if against else None
    return figures_of(observe_clips(clips, measures), measures, others)


def value(measured: Measured, name: str) -> float:
    (row,) = [row for row in measured.rows if row.measure.name == name]
    assert row.figure is not None, row.why
    return row.figure.value
