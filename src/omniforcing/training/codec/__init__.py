"""Training of the video VAE, the audio VAE and the vocoder, and of a causal video decoder.

One module per kind of network; none of it is loaded to stream.
"""
