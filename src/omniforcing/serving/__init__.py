"""The server: sessions, protocol, page, metrics, Ray Serve and MLflow's pyfunc.

``serve`` is `omniforcing serve`.
"""
