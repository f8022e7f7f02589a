"""Models of the Hugging Face hub, downloaded (or found) at their revision with huggingface_hub itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sra_core.config import ModelRef
from sra_core.errors import ModelError, first_line

__all__ = ["listed", "snapshot"]

logger = logging.getLogger(__name__)

# README.md is the card, which names the licence.
_TEXT_FILES = ["*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt", "README.md"]
_WEIGHT_FILES = ["model*.safetensors", "adapter_model.safetensors"]
_PICKLED_FILES = ["pytorch_model*.bin"]
_CODE_FILES = ["*.py"]


def snapshot(ref: ModelRef, weights: bool) -> Path:
    """The folder of the hub's cache that holds the model at ``ref.revision``.

    Pickled weights come along where they are allowed and there are no others.

    Raises:
        ModelError: no such model or revision, no access to it, no room for it, or no network and it was never fetched.
    """
    from huggingface_hub import constants, snapshot_download

    patterns = _TEXT_FILES + (_WEIGHT_FILES if weights else []) + (_CODE_FILES if ref.trust_remote_code else [])
    if ref.terms and not (Path(constants.HF_HUB_CACHE) / f"models--{ref.source.replace('/', '--')}").is_dir():
        logger.warning("fetching %s, which comes under: %s", _name(ref), ref.terms)
    with _explained(ref):
        folder = Path(snapshot_download(ref.source, revision=ref.revision, allow_patterns=patterns))
        if weights and ref.allow_pickle and not any(folder.glob("model*.safetensors")):
            patterns = patterns + _PICKLED_FILES
            folder = Path(snapshot_download(ref.source, revision=ref.revision, allow_patterns=patterns))
    return folder


def listed(ref: ModelRef) -> set[str]:
    """The names of the files of the model's repository.

    Raises:
        ModelError: As `snapshot`.
    """
    from huggingface_hub import HfApi

    with _explained(ref, "the weights of "):
        files = HfApi().model_info(ref.source, revision=ref.revision).siblings
    return {file.rfilename for file in files or ()}


def _name(ref: ModelRef) -> str:
    return f"{ref.source} at revision {ref.revision}" if ref.revision else ref.source


@contextmanager
def _explained(ref: ModelRef, part: str = "") -> Iterator[None]:
    """What the hub answers, in words that name the model (or a part of it) and the remedy."""
    from huggingface_hub import errors

    name = _name(ref)
    try:
        yield
    except errors.HFValidationError as error:
        raise ModelError(
            f"{ref.source!r} is neither a folder nor a hub id", "correct teacher or student source"
        ) from error
    # Before RepositoryNotFoundError, of which it is a kind.
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
    except Exception as error:  # whatever its transports raise: kinds of their own, or RuntimeError
        which = f"{part}{name} {'are' if part else 'is'} not in the hub's cache on this machine"
        if isinstance(error, OSError) and error.errno and not isinstance(error, (ConnectionError, TimeoutError)):
            raise ModelError(
                f"{which}, and cannot be put there: {error}", "free space there, or set HF_HOME to a folder with room"
            ) from error
        if isinstance(error, (errors.HTTPError, OSError)):  # offline mode is an OSError too
            raise ModelError(
                f"{which}, and the hub cannot be reached ({type(error).__name__})",
                "connect to the network (and unset HF_HUB_OFFLINE), or give a local folder, a GGUF file or a package",
            ) from error
        raise ModelError(
            f"{which}, and fetching it failed ({type(error).__name__}: {first_line(error)})",
            "run it again: what was fetched is kept; or give a local folder, a GGUF file or a package",
        ) from error
