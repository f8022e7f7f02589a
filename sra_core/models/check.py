"""Whether a run can use a model, told in seconds from its configs, tokenizer, index files and headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sra_core.config import ModelRef
from sra_core.errors import ModelError
from sra_core.models import hub
from sra_core.models.cache import remembered
from sra_core.models.convert import file_sha256, package_at_hand, require_sha256
from sra_core.models.folders import check_config, check_folder, weight_names
from sra_core.models.loading import looked_at
from sra_core.models.packages import package_of
from sra_core.models.references import resolve

__all__ = ["check_model", "check_tokenizer", "is_at_hand", "require_embeddings"]


def is_at_hand(ref: ModelRef) -> bool:
    """Whether looking at the model costs seconds: a package is fetched whole when a run first asks for it.

    Raises:
        ModelError: A malformed reference.
    """
    return not ref.source.startswith("package:") or package_at_hand(package_of(ref))


def check_model(ref: ModelRef) -> None:
    """Refuse a model that a stage would refuse hours later; no weights are converted or downloaded.

    Raises:
        ModelError: Names the file and what is wrong with it.
    """
    folder = Path(resolve(ref, weights=False))
    source = Path(ref.source).expanduser()
    if source.suffix == ".gguf" and ref.sha256 and source.is_file():
        require_sha256(str(source), remembered("sha256", [source], lambda: file_sha256(source)), ref.sha256)
    if source.is_dir() or ref.source.startswith(("package:", "random:")):
        check_folder(folder, ref)
    elif source.suffix == ".gguf":
        check_config(folder, ref)
    else:
        _check_repository(ref, folder)


def _check_repository(ref: ModelRef, folder: Path) -> None:
    """The hub's copy on this machine where it has the weights, else what the hub says that it has."""
    try:
        check_config(folder, ref)
        here = {path.name for path in folder.iterdir()}
        if any(name.endswith((".safetensors", ".bin")) for name in here):
            check_folder(folder, ref)
        else:
            weight_names(ref.source, hub.listed(ref), folder, ref.allow_pickle)
    except ModelError as error:
        raise ModelError(error.problem.replace(str(folder), ref.source), error.remedy) from error


def check_tokenizer(ref: ModelRef, chat: bool, teacher: bool = False) -> None:
    """Refuse a tokenizer that the method cannot use, or one without the chat template that is asked for.

    Args:
        ref: Where it comes from.
        chat: Whether the chat template is asked for.
        teacher: Whether the model beside it reads its tokens as it is; a student gets embeddings for all.

    Raises:
        ModelError, TokenizerError: As `load_tokenizer`.
    """
    folder = Path(resolve(ref, weights=False))

    def look() -> bool:
        with looked_at(ref) as tokenizer:
            if chat:
                _require_template(ref, tokenizer)
            if teacher:
                require_embeddings(ref, tokenizer, chat)
        return True

    files = [path for path in folder.iterdir() if path.is_file()]
    remembered(f"tokenizer, {chat=}, {teacher=}, {ref.source}, {ref.trust_remote_code=}", files, look)


def require_embeddings(ref: ModelRef, tokenizer: Any, chat: bool) -> None:
    """Refuse a teacher whose texts would hold tokens that it has no embeddings for.

    Special tokens that nothing writes may lie beyond: Gemma 3 has one for images, many a Llama one for padding. Text
    that merely looks like one is tokenized as text.

    Raises:
        ModelError: Names the tokens; or there is no config of a decoder to tell its embeddings from.
    """
    from transformers import AutoConfig

    folder = Path(resolve(ref, weights=False))
    check_config(folder, ref)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=ref.trust_remote_code)
    rows, added = config.get_text_config().vocab_size, tokenizer.added_tokens_decoder
    template = str(tokenizer.chat_template) if chat else ""
    beyond = {}
    for token, number in tokenizer.get_vocab().items():
        if number >= rows:
            # A template writes tokens by name; begin and end of text are put there by their ids.
            written = token in template or number in (tokenizer.bos_token_id, tokenizer.eos_token_id)
            if written or number not in added or not added[number].special:
                beyond[number] = token
    if beyond:
        shown = ", ".join(repr(beyond[number]) for number in sorted(beyond)[:4]) + (", ..." if len(beyond) > 4 else "")
        raise ModelError(
            f"{ref.source} has {rows} embeddings, and its tokenizer {len(beyond)} tokens beyond them: {shown}",
            "use the tokenizer that the model was trained with, or a model that was trained with these tokens too",
        )


def _require_template(ref: ModelRef, tokenizer: Any) -> None:
    template = tokenizer.chat_template
    if not template:
        raise ModelError(
            f"the tokenizer of {ref.source} has no chat template",
            "set the model's template to plain, or name a model that was trained on conversations",
        )
    if isinstance(template, dict) and "default" not in template:
        raise ModelError(
            f"the tokenizer of {ref.source} has chat templates named {', '.join(sorted(template))}, none named default",
            "write the one to use as chat_template into the tokenizer_config.json of a copy of the folder, or set the "
            "model's template to plain",
        )
