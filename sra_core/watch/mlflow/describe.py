"""What a run says about its config, its manifest and its process: plain values, ready to report."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sra_core.config import RunConfig, hashed
from sra_core.watch import redact, redact_text

if TYPE_CHECKING:
    from sra_core.shards import Manifest

LONGEST_VALUE = 5000
"""Characters of a parameter or tag that are kept; MLflow refuses more than 6,000."""


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


def process_tags() -> dict[str, str]:
    import psutil

    return {"process": f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"}


def is_dead(process: str) -> bool:
    """Whether a process named by the tag ``process`` ran on this machine and is gone."""
    import psutil

    host, _, rest = process.partition(":")
    pid, _, created = rest.partition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" != created
    except psutil.NoSuchProcess:
        return True


def parameters(config: RunConfig, *, grid: bool = False) -> dict[str, str]:
    """The config as parameters of a run; what `sra bench` would compare is told only of a ``grid``."""
    return flatten(config.model_dump(mode="json", exclude=None if grid else {"bench"}))


def config_digest(config: RunConfig, *, grid: bool = False) -> str:
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


def error_line(error: BaseException) -> str:
    return redact_text(f"{type(error).__name__}: {error}")[:LONGEST_VALUE]


def now() -> int:
    return int(time.time() * 1000)
