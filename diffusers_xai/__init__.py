"""Explain how a diffusion model makes its image: the diffusion profile for diffusers.

The public names stand in `__init__.pyi`. They are imported when they are first asked for, because torch and diffusers
take seconds, which a command's help or a profile that is only read shall not wait for.
"""

import sys


def _attach() -> None:
    """Puts the real `__getattr__`, `__dir__` and `__all__` in place of those below."""
    import lazy_loader  # not above: while a command imports this package, nothing answers Ctrl-C yet

    names = ("__getattr__", "__dir__", "__all__")
    globals().update(zip(names, lazy_loader.attach_stub(__name__, __file__), strict=True))


def __getattr__(name):
    _attach()
    return getattr(sys.modules[__name__], name)


def __dir__():
    _attach()
    return dir(sys.modules[__name__])
