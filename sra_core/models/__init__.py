"""Where models come from, how a student starts, and what the method reads out of a forward pass.

Shapes: B batch, T tokens, d width, V vocabulary. Layers count from 1.

A name is loaded when it is first used: `__init__.pyi` says where it lives.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
