"""LTX-2's networks as plain torch modules, with diffusers' names of weights and format on disk.

- ``network``: a network that knows its config, and reads and writes its folder.
- ``layers``: attention, feed-forward and embeddings; ``transformer``: the dual-stream transformer.
- ``video_vae``, ``audio_vae``, ``vocoder``: the codec; ``gemma``, ``connectors``: the text encoder.
- ``choose``: these networks, or the library's where a config asks for what they lack.

They compute what diffusers' and transformers' modules of the same names compute, bit for bit, and
load without those libraries, whose imports cost several times what torch costs. Tests hold both
against each other. May import ``core`` alone; diffusers and transformers in ``choose`` alone.
"""
