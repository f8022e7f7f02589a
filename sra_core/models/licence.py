"""The licence of a model, as its own card or file names it: what a student made from it may become depends on it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from sra_core.config import ModelRef
from sra_core.models.gguf import licence_in
from sra_core.models.references import resolve

__all__ = ["MADE_HERE", "licence_of"]

MADE_HERE = "none: random weights"
"""What stands for the licence of a model that is made on the spot."""


def licence_of(ref: ModelRef) -> str:
    """The licence of a model: that of its card (README.md), its GGUF header, or else the ``terms`` of the config.

    Returns:
        Mostly an identifier of the hub, such as ``apache-2.0``, in lower case; `MADE_HERE` for random models; empty
        where nothing names a licence.

    Raises:
        ModelError: the reference names nothing that can be had.
    """
    if ref.source.startswith("random:"):
        return MADE_HERE
    path = Path(ref.source).expanduser()
    if path.suffix == ".gguf" and not ref.source.startswith("package:"):  # of a packaged file the header is gone
        named = licence_in(path)
    else:
        named = _of_card(Path(resolve(ref, weights=False)) / "README.md")
    return (named or ref.terms or "").strip().lower()


def _of_card(card: Path) -> str:
    from huggingface_hub import metadata_load

    fields: dict[str, Any] = {}
    with suppress(OSError, UnicodeDecodeError, ValueError, yaml.YAMLError):  # a card that cannot be read names nothing
        fields = metadata_load(card) or {}
    licence = fields.get("license") or ""
    if licence == "other":  # the hub's word for one that is not in its list
        licence = fields.get("license_name") or licence
    return ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
