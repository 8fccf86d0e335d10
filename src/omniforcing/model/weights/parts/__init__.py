"""The parts of LTX-2 around its transformer: in from Lightricks' files, out again, bit for bit.

- ``video_vae``, ``sound``, ``connectors``: names and config of a part, Lightricks' and diffusers'
- ``part``: ``Part``, a part's weights, verified and not yet read; the kinds of parts
- ``text_encoder``: Gemma and its tokenizer, checked, then linked or copied
- ``bundle``: ``Bundle``, the whole model from its files, and the folder or files written of it

Imports ``core`` and the modules of ``model.weights`` but its ``command``.
"""
