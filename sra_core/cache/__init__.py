"""`sra cache`: one forward of the teacher over every text, kept as span centres, masses and token states.

A name is loaded when it is first used: `__init__.pyi` says where it lives.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
