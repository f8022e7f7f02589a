from .api import align, audit, shared_vocabulary
from .config.load import load_config
from .objective import pool_spans
from .stages import run

__version__: str

__all__ = ["__version__", "align", "audit", "load_config", "pool_spans", "run", "shared_vocabulary"]
