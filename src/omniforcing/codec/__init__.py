"""VAEs, vocoder and text features, whole and streaming: media to latents and back.

- ``networks``: builds and loads LTX-2's video VAE, audio VAE and vocoder
- ``codec``: ``Codec`` joins the three; encodes and decodes whole clips
- ``reach``: how far decoders look ahead; ``Reach``, ``SoundReach``, ``StreamingError``
- ``streaming``: ``StreamingDecoder`` decodes block by block, on ``stateful`` convolutions
- ``vocoder``: ``StreamingVocoder`` turns log-mel into samples, at 16, 24 or 48 kHz
- ``tokens``: ``PromptTokenizer`` counts a prompt's tokens and names what would be lost
- ``text``: ``TextEncoder`` turns prompts into text features

Imports ``core`` and ``media``. Must not import the transformer or any room above.
"""
