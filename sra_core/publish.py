"""`sra publish`: the student of a finished run, with its card, to the hub; private unless told, if licences allow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sra_core.config import RunConfig
from sra_core.errors import ManifestMismatch, PublishError, ShardError
from sra_core.shards import STUDENT, Manifest, StageFolder, is_url, local_copy, read_manifest
from sra_core.watch import redact_text

__all__ = ["publish", "require_licences", "student_of"]

_PERMIT = re.compile(
    r"apache-2\.0|mit|isc|zlib|unlicense|wtfpl|bsd(-[23]-clause(-clear)?)?|bsl-1\.0|ncsa|postgresql|afl-3\.0|"
    r"artistic-2\.0|ecl-2\.0|ms-pl|mpl-2\.0|osl-3\.0|epl-[12]\.0|eupl-1\.[12]|[al]?gpl(-[23]\.[01])?|pddl|odc-by|odbl|"
    r"cc0-1\.0|cc-by(-nc)?(-sa)?-[234]\.[05]|cdla-(sharing-1|permissive-[12])\.0|etalab-2\.0|openmdw-1\.0|openrail(\+\+)?|"
    r"(bigscience|creativeml|bigcode)-openrail-m|bigscience-bloom-rail-1\.0"
)
"""Licences of the hub's list that allow models made from a model to be handed on, some of them on terms."""
_FORBID = re.compile(r"\bcc-by(-nc)?-nd\b|\bno[- ]?deriv")
_FORBID_TEACHING = re.compile(r"\bllama[- ]?[23](?![.\d])")
"""Their terms forbid to improve other language models with what the model says (from Llama 3.1 on they allow it)."""


def student_of(config: RunConfig, evaluation: Path) -> Manifest:
    """The trained student that a finished evaluation is of, after reading every byte of it.

    Args:
        config: Tells the store, where that is behind a URL.
        evaluation: Folder of the evaluation.

    Raises:
        PublishError: The folder holds something else.
        ManifestMismatch: The student was made again after it was evaluated.
        ShardError: A manifest or the student is missing or damaged.
    """
    evaluated = read_manifest(evaluation)
    if evaluated.stage != "evaluate":
        raise PublishError(
            f"{evaluation} is a result of {evaluated.stage}, not of evaluate",
            "name the evaluation of the student, as `sra run` prints it",
        )
    root = evaluation.absolute().parent.parent
    made = evaluated.upstream["distill"]
    found = read_manifest(root / StageFolder.FOLDERS["distill"] / made.fingerprint)
    remote = is_url(config.store) and root == local_copy(config.store)
    student = StageFolder(config.store if remote else root, "distill", found.identity).manifest(full=True)
    if student is None:
        raise ShardError(f"the student in {found.folder} is damaged", "run `sra distill` again: it mends the result")
    if student.content != made.content:
        raise ManifestMismatch(
            f"the student in {student.folder} was made again since it was evaluated", "run `sra evaluate` again"
        )
    return student


def require_licences(student: Manifest, confirmed: bool) -> list[str]:
    """Refuse to hand on what the licences of the models that a student is made from do not allow.

    Args:
        student: Manifest of the student.
        confirmed: Whether the user has read terms that are not known here, and says that they allow it.

    Returns:
        What each model's licence is, for people.

    Raises:
        PublishError: A licence forbids it, or is not known to allow it and the user does not say so.
    """
    from sra_core.models import MADE_HERE
    from sra_core.training import LICENCE_NOTE

    notes = {name.removeprefix(LICENCE_NOTE): text for name, text in student.notes.items() if LICENCE_NOTE in name}
    licences = notes or {"teacher": "", "student's source": ""}  # a student of before licences were noted
    own_start = "student's source" in licences
    for which, licence in licences.items():
        # Cut out of its teacher, a student is no other model that the teacher's answers improve.
        teaches = which == "teacher" and own_start
        if _FORBID.search(licence) or (teaches and _FORBID_TEACHING.search(licence)):
            raise PublishError(
                f"the licence of the {which}, {licence}, forbids to publish a model that is made from it",
                "keep the student to yourself, or distil from a model whose licence allows it",
            )
    unclear = [
        f"the licence of the {which} is {licence or 'not known'}"
        for which, licence in licences.items()
        if licence != MADE_HERE and not _PERMIT.fullmatch(licence)
    ]
    if unclear and not confirmed:
        raise PublishError(
            f"{' and '.join(unclear)}: whether it allows to publish a model that is made from it is not known here",
            "read its terms; where they allow it, say so with --licence-allows-it",
        )
    return [f"{which}: {licence or 'not known; you say that it allows this'}" for which, licence in licences.items()]


def publish(student: Manifest, name: str, *, public: bool = False) -> str:
    """Upload a student with its card; the repository then holds this student alone, its history what was there before.

    The hub is told who asks by HF_TOKEN or the hub's own login. HF_ENDPOINT names another hub.

    Args:
        student: Manifest of the student, from `student_of`.
        name: Repository, as OWNER/NAME; made if it is not there.
        public: Whether everybody may see it.

    Returns:
        The address of the repository.

    Raises:
        PublishError: No login, no such owner, a repository that is seen by others than asked for, or a hub that cannot
            be reached or refuses.
    """
    from huggingface_hub import HfApi, errors, get_token

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise PublishError(f"{name!r} is no name of a repository", "write it as OWNER/NAME")
    if get_token() is None:
        raise PublishError("nobody is logged in to the hub", "set HF_TOKEN, or log in with `hf auth login`")
    api = HfApi(library_name="sra")
    files = [entry.name.removeprefix(f"{STUDENT}/") for entry in student.files if entry.name.startswith(f"{STUDENT}/")]
    with _explained(name):
        try:
            private = bool(api.model_info(name).private)
        except errors.RepositoryNotFoundError:
            api.create_repo(name, private=not public)
        else:
            if private == public:
                raise PublishError(
                    f"{name} is there already, and {'private' if private else 'public'}",
                    "leave --public out" if private else "give --public if everybody may see it, or another name",
                )
        api.upload_folder(
            repo_id=name,
            folder_path=Path(student.folder) / STUDENT,
            # What the manifest names, whatever else lies in the folder.
            allow_patterns=files,
            delete_patterns="*",
            commit_message=f"Student {student.fingerprint}",
        )
    return f"{api.endpoint}/{name}"


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What the hub answers, in words that name the repository and the remedy."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise PublishError(f"{name!r} is no name of a repository: {error}", "write it as OWNER/NAME") from error
    except errors.HfHubHTTPError as error:
        status, told = error.response.status_code, error.server_message or str(error).splitlines()[0]
        raise PublishError(
            f"the hub refuses {name} ({status}): {redact_text(told)}",
            "see that the token may write, and that the owner of the name is you or an organization of yours"
            if status in (401, 403)
            else "mend what it says and publish again; what was uploaded is not sent twice",
        ) from error
    except (errors.HTTPError, OSError) as error:  # offline mode is an OSError too
        raise PublishError(
            f"the hub cannot be reached ({type(error).__name__})",
            "connect to the network (and unset HF_HUB_OFFLINE), or check HF_ENDPOINT, and publish again",
        ) from error
    except (RuntimeError, ValueError) as error:  # an upload that failed, a card that the hub does not read
        raise PublishError(
            f"the student could not be uploaded to {name}: {redact_text(str(error))}",
            "publish again; what was uploaded is not sent twice",
        ) from error
