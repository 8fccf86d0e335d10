"""Training of the video VAE, the audio VAE and the vocoder, and of a causal video decoder.

Each network has a ``CodecTraining``; a stream loads none of them.
"""
