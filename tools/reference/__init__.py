"""Generate the pages of docs/reference from the code.

Each module here has a function ``page() -> str``, whose Markdown becomes the page of the module's
name: ``python_api`` makes ``docs/reference/python-api.md``. ``python -m tools.reference --write``
renews all of them, ``--check`` fails if one is stale.
"""
