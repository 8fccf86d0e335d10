"""Prompts as tokens: how many there are, what would not fit, which words the tokenizer never saw.

Whole or refused: nothing that a person wrote is cut off on its way to the text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json

# Tokens that LTX-2 encodes per prompt. Its tokenizer names no limit of its own: it says 1e30.
LONGEST = 1024
VOCABULARY = 512  # largest vocabulary that ``learn_tokenizer`` learns
SHOWN = 80  # characters of a caption that an error quotes
# A folder of tokenizers' own class, with these settings alone, needs nothing of transformers.
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
_PLAIN_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_PLAIN_KEYS = {"backend", "model_max_length", "padding_side", "tokenizer_class", *_PLAIN_TOKENS}
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # a byte of a character that Gemma has no token for


@dataclass(frozen=True)
class TokenCount:
    """How a text encoder takes one prompt.

    Attributes:
        tokens: number of tokens, with the one that begins every prompt.
        limit: number of tokens that the encoder takes.
        lost: end of the prompt that does not fit; empty if all of it does.
        unknown: words of the prompt that the tokenizer breaks into pieces it has never seen.
    """

    tokens: int
    limit: int
    lost: str
    unknown: tuple[str, ...]

    @property
    def excess(self) -> str:
        """What is too long, for an error's sentence."""
        return (
            f"{self.tokens} tokens where the text encoder takes {self.limit}; "
            f"it would lose {_short(self.lost)!r}"
        )

    @property
    def doubt(self) -> str:
        """Sentence about the unknown words."""
        return (
            "the text encoder has never seen "
            f"{_short(', '.join(self.unknown))!r} and knows them by fragments only; "
            "what they mean here is anybody's guess"
        )

    def refuse_cut(self) -> None:
        """Refuse a prompt that would be cut.

        Raises:
            OmniForcingError: with the number of tokens and the words that would be lost.
        """
        if self.lost:
            raise OmniForcingError(
                "codec.prompt-too-long", f"the prompt has {self.excess}; shorten it"
            )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


class PromptTokenizer:
    """A tokenizer that tells what it makes of a prompt.

    It neither pads nor cuts: those are settings of the shared tokenizer, and threads that change
    them at the same time spoil each other's prompts.

    Args:
        backend: a tokenizer of the library tokenizers.
        longest: tokens that it says its text encoder takes.
        special: its special tokens.
        unknown: the one for the unknown, if it has one.
        padding: id of the one that fills a prompt up, if it has one.

    Attributes:
        limit: tokens that the text encoder takes: the tokenizer's, at most ``LONGEST``.
        padding: id of the token that fills a prompt up.
    """

    def __init__(
        self,
        backend: Any,
        longest: float,
        special: Iterable[str],
        unknown: str | None = None,
        padding: int | None = None,
    ) -> None:
        self.limit, self.padding = int(min(longest, LONGEST)), padding
        self._backend, self._special, self._unknown_token = backend, frozenset(special), unknown
        backend.no_truncation()
        backend.no_padding()

    @classmethod
    def of(cls, tokenizer: Any) -> PromptTokenizer:
        """Take a fast tokenizer of transformers."""
        return cls(
            tokenizer.backend_tokenizer,
            tokenizer.model_max_length,
            tokenizer.all_special_tokens,
            tokenizer.unk_token,
            tokenizer.pad_token_id,
        )

    @classmethod
    def load(cls, folder: Path) -> PromptTokenizer:
        """Read the ``tokenizer`` of a text encoder's folder, and nothing else of it.

        Raises:
            OmniForcingError: if it is missing or unreadable.
        """
        place = folder / "tokenizer"
        if not place.is_dir():
            raise OmniForcingError(
                "file.missing",
                f"{place} is missing: a text encoder folder "
                "holds tokenizer, encoder and connectors",
            )
        try:
            return cls._plain(place) or cls._of_transformers(place)
        except Exception as error:  # tokenizers' errors share no class
            raise OmniForcingError(
                "file.unreadable",
                f"{place} is not a readable tokenizer: {str(error).splitlines()[0]}",
            ) from error

    @classmethod
    def _plain(cls, place: Path) -> PromptTokenizer | None:
        """Read a folder whose two files say all there is to say; None for any other."""
        settings = read_json(place / "tokenizer_config.json")
        if settings.get("tokenizer_class") not in _PLAIN_CLASSES or set(settings) - _PLAIN_KEYS:
            return None
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(place / "tokenizer.json"))
        named = {key: settings[key] for key in _PLAIN_TOKENS if settings.get(key) is not None}
        ids = {key: backend.token_to_id(token) for key, token in named.items()}
        if None in ids.values():
            return None
        longest, unknown = settings["model_max_length"], named.get("unk_token")
        return cls(backend, longest, named.values(), unknown, ids.get("pad_token"))

    @classmethod
    def _of_transformers(cls, place: Path) -> PromptTokenizer:
        """Read a tokenizer with rules of its own, such as Gemma's; transformers takes longer."""
        from transformers import AutoTokenizer

        return cls.of(AutoTokenizer.from_pretrained(place, local_files_only=True))

    def tokens(self, prompt: str) -> list[int]:
        """Return the token ids of a whole prompt.

        Raises:
            OmniForcingError: if it has more than ``limit``.
        """
        ids: list[int] = self._backend.encode(prompt.strip()).ids
        if len(ids) > self.limit:
            self.count(prompt).refuse_cut()
        return ids

    def count(self, prompt: str) -> TokenCount:
        """Count the tokens of a prompt and name what would be lost."""
        prompt = prompt.strip()
        encoded = self._backend.encode(prompt)
        ids, places = encoded.ids, encoded.offsets
        lost = prompt[places[self.limit][0] :] if len(ids) > self.limit else ""
        spans = list(self._unknown(prompt, encoded.tokens, encoded.word_ids, places))
        return TokenCount(len(ids), self.limit, lost, tuple(_words(prompt, spans)))

    def _unknown(
        self,
        prompt: str,
        names: list[str],
        words: list[int | None],
        places: list[tuple[int, int]],
    ) -> Iterator[tuple[int, int]]:
        """Yield the places in a prompt, first and last character, of what was never seen."""
        tokens = zip(words, names, places, strict=True)
        for word, group in groupby(tokens, key=lambda token: token[0]):
            if word is None:  # the token that begins every prompt
                continue
            pieces = [(name, place) for _, name, place in group]
            broken = self._knows_whole_words and len(pieces) > 1
            for name, place in pieces:
                if broken or name in self._never_seen or _BYTE.fullmatch(name):
                    yield place
        # A tokenizer with neither bytes nor a token for the unknown drops what it does not know.
        covered: set[int] = set()
        for first, last in places:
            covered.update(range(first, last))
        for index, character in enumerate(prompt):
            if index not in covered and not character.isspace():
                yield index, index + 1

    @cached_property
    def _is_byte_level(self) -> bool:
        from tokenizers.decoders import ByteLevel

        return isinstance(self._backend.decoder, ByteLevel)

    @cached_property
    def _knows_whole_words(self) -> bool:
        """Whether the tokenizer was learnt until each word of its captions was one token.

        A learnt vocabulary that is not full had no pair left to join.
        """
        return self._is_byte_level and self._backend.get_vocab_size() < VOCABULARY

    @cached_property
    def _never_seen(self) -> set[str]:
        """Tokens for the unknown, and bytes that no longer token holds: learning met none."""
        unknown = set() if self._unknown_token is None else {self._unknown_token}
        if not self._is_byte_level:
            return unknown
        vocabulary = set(self._backend.get_vocab()) - self._special
        joined: set[str] = set()
        for token in vocabulary:
            if len(token) > 1:
                joined.update(token)
        alone = {token for token in vocabulary if len(token) == 1}
        return unknown | (alone - joined)


def _words(prompt: str, spans: Iterable[tuple[int, int]]) -> list[str]:
    """Return the words, between white space, that places in a prompt belong to; each once."""
    found: dict[str, None] = {}
    for word in re.finditer(r"\S+", prompt):
        if any(first < word.end() and last > word.start() for first, last in spans):
            found[word.group()] = None
    return list(found)


def learn_tokenizer(captions: list[str], length: int) -> Any:
    """Learn a small byte-level tokenizer, which has tokens for any caption in any script.

    Args:
        captions: texts to learn from.
        length: tokens that its text encoder takes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(captions)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        model_max_length=length,
        padding_side="left",
    )
