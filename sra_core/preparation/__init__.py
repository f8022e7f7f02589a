"""Preparation: the corpus through both tokenizers into shards of aligned examples, a shard at a time.

Nothing here loads torch or transformers on import, so a worker process is at work in half a second.
"""

from sra_core.preparation.stage import AUDIT_PAGE, audit_of, prepare_corpus, prepare_identity
from sra_core.preparation.tasks import prepared_row
from sra_core.preparation.tokenizers import (
    STUDENT_TOKENIZER,
    TEACHER_TOKENIZER,
    load_tokenizers,
    make_encoder,
    save_tokenizers,
    shared_tokens,
)

__all__ = [
    "AUDIT_PAGE",
    "STUDENT_TOKENIZER",
    "TEACHER_TOKENIZER",
    "audit_of",
    "load_tokenizers",
    "make_encoder",
    "prepare_corpus",
    "prepare_identity",
    "prepared_row",
    "save_tokenizers",
    "shared_tokens",
]
