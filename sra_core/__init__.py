"""Cross-tokenizer distillation by span representation alignment (SRA, arXiv 2605.01205)."""

__version__ = "0.1.0"
__all__ = ["__version__"]
