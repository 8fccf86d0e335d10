"""Video files in and out: probe, decode, conform and mux clips; mel spectrograms of their sound.

Must not import models, codecs or anything above.
"""
