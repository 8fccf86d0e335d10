"""LTX-2's files in and out: names, shapes, formats, sharded writing.

Formats are checked against the architecture in the file's own config.
"""
