"""Text features: Gemma and LTX-2's connectors turn a prompt into one feature sequence per modality.

A text encoder's folder holds ``tokenizer/``, ``encoder/`` (Gemma) and ``connectors/``, each as its
library saves it. All of it is frozen: features are computed once per caption and stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from omniforcing.codec.config import TextConfig
from omniforcing.codec.tokens import VOCABULARY, PromptTokenizer, learn_tokenizer
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.latents import TextFeatures
from omniforcing.networks import gemma
from omniforcing.networks.connectors import LTX2TextConnectors
from omniforcing.networks.network import Loaded, stored_precision

# Bytes that hidden states of all layers may take: Gemma 12B's of 1024 tokens are 770 MB a prompt.
MOST_STATES = 1 << 30


class TextEncoder(nn.Module):
    """Encode prompts to text features.

    The connectors fill the padding with learned registers, so the features need no mask.

    Args:
        prompts: Gemma's tokenizer; prompts are padded on the left to its limit.
        encoder: Gemma's text model.
        connectors: ``LTX2TextConnectors``.

    Raises:
        OmniForcingError: if the connectors' registers cannot fill the padding of such prompts.
    """

    def __init__(self, prompts: PromptTokenizer, encoder: nn.Module, connectors: Any) -> None:
        super().__init__()
        _refuse_registers(connectors.config, prompts.limit)
        self.prompts, self.encoder, self.connectors = prompts, encoder, connectors
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(
        cls, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> TextEncoder:
        """Read a folder that ``build_tiny`` wrote, or LTX-2's own, where Gemma is ``text_encoder``.

        Args:
            folder: folder with tokenizer, Gemma and connectors.
            device: device to put them on.
            dtype: precision of their weights in memory; features are float32 in any.

        Raises:
            OmniForcingError: if a part is missing or unreadable.
        """
        encoder = _encoder_folder(folder)
        prompts = PromptTokenizer.load(folder)
        try:
            encoder_model = _load_gemma(encoder, dtype)
            connectors = _whole(LTX2TextConnectors.load(folder / "connectors", dtype))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise OmniForcingError(
                "file.unreadable",
                f"{folder} is not a readable text encoder: {str(error).splitlines()[0]}",
            ) from error
        return cls(prompts, encoder_model, connectors).to(device)

    @property
    def at_once(self) -> int:
        """Prompts to encode at a time, so that the states of all layers stay below a gigabyte."""
        config, size = self.connectors.config, next(self.encoder.parameters()).element_size()
        width = config["caption_channels"] * config["text_proj_in_factor"]
        return max(1, MOST_STATES // (self.prompts.limit * width * size))

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextFeatures:
        """Encode prompts; the empty prompt is the unconditional one.

        Args:
            prompts: B prompts.

        Returns:
            Features of each modality ``[B, L, D]``.

        Raises:
            OmniForcingError: if a prompt has more than L tokens, and would be cut.
        """
        device = next(self.encoder.parameters()).device
        rows, length = [self.prompts.tokens(p) for p in prompts], self.prompts.limit
        ids = torch.full((len(rows), length), self.prompts.padding or 0, device=device)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            first = length - len(tokens)
            ids[row, first:], mask[row, first:] = torch.tensor(tokens, device=device), 1
        states: tuple[Tensor, ...] = self.encoder(
            input_ids=ids, attention_mask=mask, output_hidden_states=True
        ).hidden_states
        # LTX-2 reads the hidden states of all layers, ``[B, L, D, layers + 1]``, packed per token.
        packed = torch.stack(states, -1).flatten(2, 3)
        video, audio, _ = self.connectors(packed, mask, padding_side="left")
        return TextFeatures(video, audio).map(Tensor.float)


class FreedTextEncoder:
    """A text encoder whose networks are loaded for each prompt and freed after it.

    Gemma 12B takes 24 GB in bf16, and a stream needs it when its prompt changes alone.

    Args:
        folder: as ``TextEncoder.load``.
        device: as there.
        dtype: as there.

    Attributes:
        prompts: the tokenizer, which stays.

    Raises:
        OmniForcingError: if a part is missing.
    """

    def __init__(
        self, folder: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        _encoder_folder(folder)
        self.prompts = PromptTokenizer.load(folder)
        self._folder, self._device, self._dtype = folder, device, dtype

    def encode(self, prompts: list[str]) -> TextFeatures:
        """Encode prompts as ``TextEncoder.encode`` does."""
        for prompt in prompts:
            self.prompts.tokens(prompt)  # refuses one that is too long before anything is loaded
        return TextEncoder.load(self._folder, self._device, self._dtype).encode(prompts)


def text_precision(folder: Path) -> torch.dtype:
    """Return the precision to encode captions in: that of the stored weights, bf16 or fp32.

    As published Gemma and connectors are bf16, and Lightricks' and diffusers' pipelines compute in
    it; in fp32 Gemma 12B takes 48 GB.

    Args:
        folder: folder with tokenizer, Gemma and connectors.

    Raises:
        OmniForcingError: if a part is missing or its weights are unreadable.
    """
    return stored_precision(_encoder_folder(folder), folder / "connectors")


def _encoder_folder(folder: Path) -> Path:
    """Return Gemma's folder in a text encoder's folder, none of whose networks may be missing."""
    encoder = folder / ("encoder" if (folder / "encoder").is_dir() else "text_encoder")
    for part in (encoder, folder / "connectors"):
        if not part.is_dir():
            raise OmniForcingError(
                "file.missing",
                f"{part} is missing: a text encoder folder holds tokenizer, encoder and connectors",
            )
    return encoder


def _load_gemma(folder: Path, dtype: torch.dtype) -> Any:
    """Read Gemma 3's text model; any other encoder by transformers, which takes longer to load."""
    if gemma.covers(folder):
        return _whole(gemma.GemmaText.load(folder, dtype))
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar is enough: ours
    return AutoModel.from_pretrained(
        folder, local_files_only=True, dtype=dtype, use_safetensors=True
    )


def _whole(read: Loaded) -> Any:
    if read.missing:
        raise ValueError(f"{len(read.missing)} tensors are missing, such as {min(read.missing)}")
    return read.network


def _refuse_registers(config: Any, length: int) -> None:
    """Refuse connectors without registers, or whose number does not divide the padded length.

    Without them the connectors still say that no token is padding, and do not blank it.
    """
    for stream in ("video", "audio"):
        count = config[f"{stream}_connector_num_learnable_registers"]
        if not count or length % count:
            raise OmniForcingError(
                "codec.wrong-registers",
                f"the {stream} connector has {count or 'no'} registers, and prompts are padded to "
                f"{length} tokens; take connectors whose registers divide {length}",
            )


def build_tiny(folder: Path, config: TextConfig, captions: list[str], seed: int) -> None:
    """Write a small text encoder with random weights and a tokenizer learnt from captions.

    Args:
        folder: folder to write ``tokenizer``, ``encoder`` and ``connectors`` into.
        config: sizes.
        captions: texts to learn the tokenizer from.
        seed: seed of the weights.
    """
    from transformers import Gemma3TextConfig, Gemma3TextModel

    head = config.hidden // config.heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma3TextModel(
            Gemma3TextConfig(
                vocab_size=VOCABULARY,
                hidden_size=config.hidden,
                intermediate_size=4 * config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                head_dim=head,
                max_position_embeddings=config.length,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=2,
                # Wider than Gemma's 0.02: an untrained model must still tell words apart.
                initializer_range=0.2,
            )
        )
        sizes = {
            "num_attention_heads": config.heads,
            "attention_head_dim": head,
            "num_layers": 1,
            "num_learnable_registers": config.registers,
        }
        per_stream: dict[str, Any] = {}
        for stream in ("video", "audio"):
            per_stream |= {f"{stream}_connector_{name}": size for name, size in sizes.items()}
        connectors = LTX2TextConnectors(
            caption_channels=config.hidden,
            text_proj_in_factor=config.layers + 1,
            connector_rope_base_seq_len=config.length,
            rope_type="split",
            **per_stream,
        )
    learn_tokenizer(captions, config.length).save_pretrained(folder / "tokenizer")
    model.save_pretrained(folder / "encoder")
    connectors.save_pretrained(folder / "connectors")
