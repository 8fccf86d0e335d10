"""``python -m omniforcing``: the command where PATH may lack it."""

from omniforcing.cli import main

if __name__ == "__main__":
    main()
