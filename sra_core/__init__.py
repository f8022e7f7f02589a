"""Cross-tokenizer distillation by span representation alignment (SRA, arXiv 2605.01205).

A name is loaded when it is first used: `__init__.pyi` says where it lives. To import the package loads no torch.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
