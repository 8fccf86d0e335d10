"""LTX-2's weights on disk: formats, names, RoPE conventions, conversion.

- ``checkpoint``: open weights of any format; names, shapes and dtypes are verified first.
- ``architecture``: the transformer's config, between Lightricks' metadata and diffusers; ``names``:
  tensor names, likewise; ``rope_layout``: weights between the split and the interleaved RoPE.
- ``tensor_file``: safetensors files, read and written tensor by tensor; ``writing``: whole
  checkpoints in diffusers' or Lightricks' format.
- ``quantised``: fp8 and int8 files, read as bf16; ``parts``: codecs, connectors and text encoder.
- ``student``: save and load a ``DualStream``; ``command``: ``omniforcing weights``.
- ``program``: TorchScript files of other networks, opened only by the sha256 that the user names.

Must not import ``model.inference``, ``data``, ``training`` or ``streaming``.
"""
