"""Is what a caption quotes really said: word error rate by Whisper."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from omniforcing.core.layout import SAMPLE_RATE
from omniforcing.evaluation.measures.base import Measure
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.encoders.models import load
from omniforcing.evaluation.measures.encoders.weights import Unusable, Weights, WithWeights

MOST_TOKENS = 200  # of a transcript
QUOTES = re.compile(r'"([^"]+)"|\u201c([^\u201d]+)\u201d')


def quoted(caption: str) -> str:
    """What a caption quotes, in double quotes."""
    return " ".join(straight or curly for straight, curly in QUOTES.findall(caption))


def words(text: str) -> list[str]:
    """Words in small letters, without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def word_errors(said: Sequence[str], wanted: Sequence[str]) -> int:
    """Least number of words to replace, insert or drop (Levenshtein)."""
    costs = list(range(len(wanted) + 1))
    for row, word in enumerate(said, 1):
        before, costs[0] = costs[0], row
        for column, other in enumerate(wanted, 1):
            kept = before + (word != other)
            before = costs[column]
            costs[column] = min(kept, costs[column] + 1, costs[column - 1] + 1)
    return costs[-1]


class WhisperEncoder:
    """Whisper: what is said."""

    name = "whisper"

    def __init__(self, weights: Weights) -> None:
        from transformers import AutoTokenizer, WhisperFeatureExtractor
        from transformers import WhisperForConditionalGeneration as Whisper

        folder = weights.folder(self.name, "whisper")
        self.model = load(Whisper, folder, weights.device)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise Unusable(f"{folder} has no tokenizer or feature extractor") from error

    @torch.no_grad()
    def transcript(self, clip: Clip) -> str:
        """What is said in a clip of 30 s at most."""
        wave = clip.media.audio.mean(0)
        inputs = self.extractor(wave, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        tokens = self.model.generate(
            inputs.input_features.to(self.model.device),
            max_new_tokens=min(MOST_TOKENS, self.model.config.max_target_positions // 2),
            do_sample=False,
        )
        return str(self.tokenizer.batch_decode(tokens, skip_special_tokens=True)[0])


class WordErrors(WithWeights, Measure):
    """Word error rate of what captions quote; clips whose caption quotes nothing have none."""

    name = "wer_whisper"
    asks = "whose caption quotes speech in double quotes"
    protocol = (
        "Whisper, greedy; words in small letters without punctuation, errors of all clips over "
        "words that their captions put in double quotes"
    )
    encoder_kind = WhisperEncoder
    licence = "Apache-2.0 (openai/whisper-small)"

    def observe(self, clip: Clip) -> tuple[int, int] | None:
        wanted = words(quoted(clip.caption or ""))
        if not wanted:
            return None
        return word_errors(words(self.encoder.transcript(clip)), wanted), len(wanted)

    def value(self, seen: Sequence[tuple[int, int]]) -> float:
        return sum(errors for errors, _ in seen) / sum(count for _, count in seen)
