"""`sra prepare`: the corpus through both tokenizers into shards of aligned examples, a shard at a time.

Nothing here loads torch or transformers on import, so a worker process is at work in half a second.
"""

from sra_core.prepare.figure import check_figure, example_figure, write_figure
from sra_core.prepare.stage import AUDIT_PAGE, audit_of, identity, prepare_corpus, report_audit
from sra_core.prepare.tokenizers import refuse_chat_without_template, save_tokenizers

__all__ = [
    "AUDIT_PAGE",
    "audit_of",
    "check_figure",
    "example_figure",
    "identity",
    "prepare_corpus",
    "refuse_chat_without_template",
    "report_audit",
    "save_tokenizers",
    "write_figure",
]
