"""`python -m diffusers_xai.cli`, and the script `diffusers-xai`."""

import sys

from diffusers_xai.cli import main


def script() -> None:
    """Runs the command line and leaves the process, which Ctrl-C no longer interrupts once the work is done."""
    code = main()
    import signal  # not above: until `main` runs, nothing answers Ctrl-C

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    script()
