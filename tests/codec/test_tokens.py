"""Prompts reach the text encoder whole or are refused, and its unknown words are named."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from omniforcing.codec.config import TextConfig
from omniforcing.codec.text import TextEncoder, build_tiny
from omniforcing.codec.tokens import LONGEST, PromptTokenizer, learn_tokenizer
from omniforcing.pocket.foundation import KEPT
from tests.support.refusals import refuses

CAPTIONS = ["a red ball bounces", "a blue ball rolls"]


def config(length: int) -> TextConfig:
    return TextConfig(layers=1, hidden=32, heads=2, length=length, registers=8)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a text encoder that takes 16 tokens."""
    folder = tmp_path_factory.mktemp("text")
    build_tiny(folder, config(length=16), CAPTIONS, seed=0)
    return folder


def test_a_prompt_that_would_be_cut_is_refused_with_its_tokens_and_what_is_lost(text: Path) -> None:
    encoder = TextEncoder.load(text)
    whole = " ".join(["red"] * 15)
    assert encoder.encode([whole]).video.shape == (1, 16, 32)
    with refuses("codec.prompt-too-long", "18 tokens", "takes 16", "'blue ball'"):
        encoder.encode([f"{whole} blue ball"])


def test_prompts_of_any_length_share_a_batch_and_change_nothing_for_each_other(text: Path) -> None:
    encoder = TextEncoder.load(text)
    prompts = ["", " a red ball ", "a blue ball rolls a red ball bounces"]
    together = encoder.encode(prompts)
    for row, prompt in enumerate(prompts):
        alone = encoder.encode([prompt])
        assert torch.allclose(alone.video[0], together.video[row], atol=1e-5)
        assert torch.allclose(alone.audio[0], together.audio[row], atol=1e-5)


def test_a_tokenizer_without_a_limit_takes_the_tokens_of_ltx2(tmp_path: Path) -> None:
    build_tiny(tmp_path, config(length=LONGEST), CAPTIONS, seed=0)
    place = tmp_path / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(place.read_text())
    # As Gemma's is stored: its own limit is a sentinel of 1e30.
    place.write_text(json.dumps({**settings, "model_max_length": 10**30}))
    encoder = TextEncoder.load(tmp_path)
    assert encoder.prompts.limit == 1024
    assert encoder.encode(["a red ball bounces"]).video.shape == (1, 1024, 32)
    with refuses("codec.prompt-too-long", "1102 tokens", "takes 1024"):
        encoder.encode(["ball " * 1101])


def test_words_that_a_learnt_tokenizer_never_met_are_named() -> None:
    tokenizer = PromptTokenizer.of(learn_tokenizer(CAPTIONS, 64))
    count = tokenizer.count("a red zebra, a blue ball and a \U0001f436 rolls")
    assert count.unknown == ("zebra,", "and", "\U0001f436") and not count.lost
    assert "zebra," in count.doubt and "\n" not in count.doubt
    for caption in ("", *CAPTIONS):
        assert tokenizer.count(caption).unknown == ()


def test_the_kept_foundation_takes_its_own_captions_whole_and_knows_every_word() -> None:
    tokenizer = PromptTokenizer.load(KEPT / "codec" / "text")
    ball = "a yellow ball bounces between the walls"
    count = tokenizer.count(f"{ball} and a green ball bounces high on the floor")
    assert (count.limit, count.lost, count.unknown) == (32, "", ())
    english = tokenizer.count("A street musician in a red coat plays the violin")
    assert english.tokens == 42 and english.lost == "ys the violin" and "coat" in english.unknown


@pytest.mark.parametrize("drops_unknown", [False, True])
def test_byte_fallback_and_unknown_tokens_are_named(drops_unknown: bool) -> None:
    """As in Gemma's tokenizer, and in one that drops what it has no token for."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = "\u2581adelr"
    names = [*letters, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {name: index for index, name in enumerate(names)}
    if drops_unknown:
        vocabulary = {name: index for index, name in enumerate(letters)}
    model = models.BPE(vocab=vocabulary, merges=[], byte_fallback=not drops_unknown)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64)
    count = PromptTokenizer.of(tokenizer).count("a red \u0434ad la")
    assert count.unknown == ("\u0434ad",)
