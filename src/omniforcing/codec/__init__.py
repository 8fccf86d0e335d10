"""VAEs, vocoder and text features, whole and streaming: media to latents and back.

Must not import the transformer or anything above.
"""
