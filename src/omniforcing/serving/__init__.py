"""Server for streams: page, WebSocket protocol, sessions, Prometheus metrics; MLflow's pyfunc.

- ``serve``: the command ``omniforcing serve``; ``ray_serve``: the app as a Ray Serve deployment.
- ``app.build_app``: the ASGI app; ``service.Service``: what all sessions share;
  ``session.Session``: one WebSocket session; ``protocol``: its messages.
- ``rollover``: changes a running server to the model that an alias of MLflow names now.
- ``wire``: how a session's messages are written; ``realtime``: as vLLM-Omni's clients know them.
- ``pyfunc``: the artifact as an MLflow model.

Imports ``streaming`` and rooms below; must not import ``pipeline``, so that an inference machine
serves without the training tools.
"""
