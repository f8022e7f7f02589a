"""What a run says about its config, its manifest and its process: plain values, ready to report."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sra_core.config import MAIN_FIELDS, RunConfig, hashed
from sra_core.config.yaml_1_2 import write_yaml
from sra_core.watch import redact, redact_text

if TYPE_CHECKING:
    from sra_core.shards import Manifest

LONGEST_VALUE = 5000
"""Characters of a parameter or tag that are kept; MLflow refuses more than 6,000."""

LONGEST_NOTE = 7000
"""Characters of a run's description that are kept; MLflow refuses more than 8,000."""
_NOT_IN_NAMES = re.compile(r"[^\w\-. :/]")
_MAIN = ("recipe", *MAIN_FIELDS)
_FIRST = ("evaluate/student/bits_per_byte", "evaluate/student/", "evaluate/teacher/", "evaluate/initial/", "evaluate/")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one level of dotted names; secrets masked, values as text."""
    flat: dict[str, str] = {}
    for key, value in redact(values).items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = (value if isinstance(value, str) else json.dumps(value))[:LONGEST_VALUE]
    return flat


def process_name() -> str:
    """This process, named so that no later one on any machine has the same name."""
    import psutil

    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def process_tags() -> dict[str, str]:
    return {"process": process_name()}


def is_dead(process: str) -> bool:
    """Whether a process of that name ran on this machine and is gone."""
    import psutil

    host, _, rest = process.partition(":")
    pid, _, created = rest.partition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" != created
    except psutil.NoSuchProcess:
        return True


def parameters(config: RunConfig, *, grid: bool = False) -> dict[str, Any]:
    """The config for a run: ``params``, all fields, and ``shown``, what people compare runs by: the main fields and
    all that differ from their defaults.

    What `sra bench` would compare is told only of a ``grid``.
    """
    given, usual = (flatten(_plain(each, grid)) for each in (config, RunConfig()))
    shown = [name for name, text in given.items() if name in _MAIN or usual.get(name) != text]
    return {"params": given, "shown": shown}


def config_text(config: RunConfig, *, grid: bool = False) -> str:
    """The whole config as YAML, secrets masked; a file of it is a recipe."""
    return write_yaml(redact(_plain(config, grid)), allow_unicode=True)


def _plain(config: RunConfig, grid: bool) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=None if grid else {"bench"})


def by_weight(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics in the order in which people ask for them: MLflow's pages open on those that were logged first."""

    def place(name: str) -> tuple[int, int, str]:
        first = next((rank for rank, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST))
        return first, name.count("/"), name

    return {name: metrics[name] for name in sorted(metrics, key=place)}


def config_digest(config: RunConfig, *, grid: bool = False) -> str:
    # As results see it: a run that was stopped is found again where only runtime fields are others.
    named = {"name": config.name, **redact(hashed(config))}
    if grid:
        named["bench"] = redact(config.bench.model_dump(mode="json"))
    text = json.dumps(named, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def manifest_inputs(manifest: Manifest) -> list[list[str]]:
    """Name, digest, place, profile and context of what the stage read and of what it made."""
    made = {stage: upstream.fingerprint for stage, upstream in manifest.upstream.items()}
    inputs = [[stage, digest, "", "{}", "upstream"] for stage, digest in made.items()]
    if manifest.stage == "prepare":
        corpus = redact(manifest.identity.get("corpus", {}))
        digest = hashlib.sha256(json.dumps(corpus, sort_keys=True, default=str).encode()).hexdigest()[:16]
        inputs.append(["corpus", digest, "", json.dumps(corpus, default=str)[:LONGEST_VALUE], "corpus"])
    profile = json.dumps({"counts": manifest.counts, "bytes": manifest.size()})
    inputs.append([f"{manifest.stage} manifest", manifest.fingerprint, manifest.folder, profile, "result"])
    return inputs


def manifest_tags(manifest: Manifest) -> dict[str, str]:
    upstream = {f"upstream.{stage}": made.fingerprint for stage, made in manifest.upstream.items()}
    versions = {f"version.{name}": version for name, version in manifest.versions.items()}
    return {**upstream, **versions, "content": manifest.content, "folder": redact_text(manifest.folder)}


def metric_name(name: str) -> str:
    """A name that MLflow takes: for one that it refuses (`pass@1`) it drops all that were told along with it."""
    return _NOT_IN_NAMES.sub("-", name)


def error_line(error: BaseException) -> str:
    return redact_text(f"{type(error).__name__}: {error}")[:LONGEST_VALUE]


def note(text: str) -> str:
    """Markdown for a run's description, cut after a whole line."""
    if len(text) <= LONGEST_NOTE:
        return text
    return text[:LONGEST_NOTE].rpartition("\n")[0] + "\n\n… the rest is among the artifacts, under reports."


def final_status(error: BaseException) -> str:
    # Ctrl-C, SIGTERM and Prefect's cancelling come as other kinds of BaseException.
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def now() -> int:
    return int(time.time() * 1000)
