"""Explain how a diffusion model makes its image: the diffusion profile for diffusers.

The public names stand in `__init__.pyi`. They are imported when they are first asked for, because torch and diffusers
take seconds, which a command's help or a profile that is only read shall not wait for.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
