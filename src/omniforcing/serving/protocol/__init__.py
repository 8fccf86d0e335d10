"""The messages of a WebSocket session: declared, as dataclasses, and read.

To add one, see docs/how-to/add-a-message.md. Must not import sessions or servers.
"""
