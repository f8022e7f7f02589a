"""Weights from files into a model, whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sra_core.config import ModelRef
from sra_core.errors import ModelError, first_line
from sra_core.models.bars import no_progress_bars

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["code_remedy", "read_model", "read_weights", "some"]

logger = logging.getLogger(__name__)

_SHOWN = 4  # names in a message


def read_model(folder: Path, ref: ModelRef, **options: Any) -> PreTrainedModel:
    """The model of a folder in transformers' format, as `read_weights`; whatever else fails is told for the reference.

    Raises:
        ModelError: as `read_weights`; or transformers cannot load it.
    """
    try:
        return read_weights(folder, ref.source, trust_remote_code=ref.trust_remote_code, **options)
    except ModelError:
        raise
    except Exception as error:  # any kind: wrong class, torn file, missing code; the message carries the cause
        raise ModelError(
            f"{ref.source} is not a causal language model that transformers can load: {first_line(error)}",
            code_remedy(ref, folder) or "give a decoder-only model with its config.json and safetensors weights",
        ) from error


def read_weights(folder: Path, name: str, *, trust_remote_code: bool = False, **options: Any) -> PreTrainedModel:
    """``AutoModelForCausalLM.from_pretrained``, which starts what the files lack at random: here that is refused.

    Args:
        folder: The model's folder.
        name: What messages call the model.
        trust_remote_code: Whether code that the folder ships may run: transformers, not told, asks the terminal.
        options: Of ``from_pretrained``.

    Raises:
        ModelError: the files lack tensors of the model, or hold some of another shape.
    """
    from transformers import AutoModelForCausalLM

    with no_progress_bars(), _without_report():
        # ignore_mismatched_sizes: else transformers raises, and the tensors are named in the table alone, hidden here.
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
            **options,
        )
    kind, unknown = type(model).__name__, found["unexpected_keys"]
    spare = f"{len(unknown)} tensors in the files of {name} are not part of {kind}: {some(unknown)}"
    if missing := found["missing_keys"]:
        raise ModelError(
            f"the files of {name} lack {len(missing)} tensors of {kind}, which would be random numbers: "
            f"{some(missing)}" + (f"; {spare}" if unknown else ""),
            "save the whole model again under these names (unwrapped, with its LM head, in a plain type), "
            "or download it again",
        )
    if mismatched := found["mismatched_keys"]:
        shapes = [f"{tensor} is {tuple(there)}, not {tuple(wanted)}" for tensor, there, wanted in mismatched]
        raise ModelError(
            f"{len(shapes)} tensors in the files of {name} are not shaped as its config.json says: {some(shapes)}",
            "copy or download config.json and weights again, from one place",
        )
    if unknown:
        logger.warning("%s; they are left out", spare)
    whole: PreTrainedModel = model
    return whole


@contextmanager
def _without_report() -> Iterator[None]:
    """Without transformers' own table of what was missing: what it says is said in one line, or refused."""
    reporting = logging.getLogger("transformers.modeling_utils")
    reporting.addFilter(_is_no_report)
    try:
        yield
    finally:
        reporting.removeFilter(_is_no_report)


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def code_remedy(ref: ModelRef, folder: Path) -> str:
    """What to do where a model ships code that is not trusted; empty where it ships none."""
    texts = [folder / name for name in ("config.json", "tokenizer_config.json") if (folder / name).is_file()]
    own_code = not ref.trust_remote_code and any("auto_map" in path.read_text(encoding="utf-8") for path in texts)
    return "read the code that the model ships and, if you trust it, set trust_remote_code" if own_code else ""


def some(names: Collection[str]) -> str:
    """A few of these names, in order."""
    shown = sorted(names)[:_SHOWN]
    return ", ".join(shown) + (", ..." if len(names) > _SHOWN else "")
