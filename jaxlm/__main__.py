"""`python -m jaxlm` is the command `jaxlm`."""

import sys

from jaxlm import cli

if __name__ == "__main__":
    sys.exit(cli.main())
