"""Stage II: make the student block-causal by ODE regression, with sinks (paper section 3.3)."""

import sys

from omniforcing.cli import main

if __name__ == "__main__":
    main(["stage", "causal_ode", *sys.argv[1:]])
