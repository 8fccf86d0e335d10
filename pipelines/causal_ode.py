"""Stage II: make the student block-causal by ODE regression, with sinks (paper section 3.3)."""

from omniforcing.pipeline.stage import stage_main

if __name__ == "__main__":
    stage_main("causal_ode")
