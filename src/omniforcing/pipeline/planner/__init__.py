"""What a training takes of GPUs before one is paid for: plan, trace, networks without memory.

`omniforcing plan`.
"""
