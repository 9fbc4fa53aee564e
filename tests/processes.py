"""What the tests' child processes need."""

import os
from pathlib import Path


def environment(**more):
    """This process's environment, in which a child finds this very package, and `more`."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **more}
