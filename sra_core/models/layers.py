"""How many layers a model has, and which one a number means. Layers count from 1; nothing here loads weights."""

from __future__ import annotations

from pathlib import Path

from sra_core.config import ModelRef
from sra_core.errors import ConfigError
from sra_core.models.cache import remembered
from sra_core.models.folders import check_config
from sra_core.models.references import resolve

__all__ = ["layer_count_of", "resolve_layer"]


def layer_count_of(ref: ModelRef) -> int:
    """The number of decoder layers, from the config of the model that a reference names.

    Raises:
        ModelError: The reference names nothing that can be had, or no decoder.
    """
    folder = Path(resolve(ref, weights=False))

    def read() -> int:
        from transformers import AutoConfig

        from sra_core.models.structure import layer_count

        check_config(folder, ref)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=ref.trust_remote_code)
        return layer_count(config)

    return remembered("layers", [folder / "config.json"], read)


def resolve_layer(count: int, layer: int, field: str = "objective.layers") -> int:
    """A layer number from 1 to ``count``; -1 stands for the last.

    Args:
        count: Layers of the model.
        layer: The number.
        field: Where it stands in the config.

    Raises:
        ConfigError: the model has no such layer.
    """
    number = count if layer == -1 else layer
    if not 1 <= number <= count:
        raise ConfigError(
            f"there is no layer {layer} in a model of {count} layers",
            f"count layers from 1 to {count} in {field}, or use -1 for the last",
        )
    return number
