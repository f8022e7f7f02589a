"""The engine of adapt and distill: data order, the loop under DeepSpeed, guards, checkpoints, processes, export.

A name is loaded when it is first used: `__init__.pyi` says where it lives.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
