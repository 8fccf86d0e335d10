"""Speed and memory of the streaming student with random weights; `__main__.py` is the command.

`cases` are the models, `bench` streams and times one, `ratios` compares it with the alternatives,
`operations` counts its matrix products, `plain` is the forward of public code. Torch and diffusers
are enough: nothing here imports the training tools.
"""
