"""`python -m diffusers_xai.cli`, where the script is not installed."""

import sys

from diffusers_xai.cli import main


if __name__ == "__main__":
    sys.exit(main())
