"""Models of the Hugging Face hub, downloaded (or found) at their revision with huggingface_hub itself."""

from __future__ import annotations

import logging
from pathlib import Path

from sra_core.config import ModelRef
from sra_core.errors import ModelError

__all__ = ["snapshot"]

logger = logging.getLogger(__name__)

_TEXT_FILES = ["*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]
_WEIGHT_FILES = ["model*.safetensors", "model.safetensors.index.json"]
_CODE_FILES = ["*.py"]


def snapshot(ref: ModelRef, weights: bool) -> Path:
    """The folder of the hub's cache that holds the model at ``ref.revision``.

    Raises:
        ModelError: no such model or revision, no access to it, or no network and it was never downloaded.
    """
    from huggingface_hub import constants, errors, snapshot_download

    patterns = _TEXT_FILES + (_WEIGHT_FILES if weights else []) + (_CODE_FILES if ref.trust_remote_code else [])
    name = f"{ref.source} at revision {ref.revision}" if ref.revision else ref.source
    if ref.terms and not (Path(constants.HF_HUB_CACHE) / f"models--{ref.source.replace('/', '--')}").is_dir():
        logger.warning("fetching %s, which comes under: %s", name, ref.terms)
    try:
        return Path(snapshot_download(ref.source, revision=ref.revision, allow_patterns=patterns))
    except errors.HFValidationError as error:
        raise ModelError(
            f"{ref.source!r} is neither a folder nor a hub id", "correct teacher or student source"
        ) from error
    except errors.GatedRepoError as error:
        raise ModelError(
            f"the hub does not give {name} to this user", "accept its terms on the hub and log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"the hub has no {name}", "correct the revision, or leave it out") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {name}", "correct the name; for a private model log in with `hf auth login`"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name} is not in the hub's cache on this machine, and the hub cannot be reached ({type(error).__name__})",
            "connect to the network (and unset HF_HUB_OFFLINE), or give a local folder, a GGUF file or a package",
        ) from error
