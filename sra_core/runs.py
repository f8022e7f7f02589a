"""A run, settled once: its config, and the identity, fingerprint and folder of every stage's result.

What identifies a result is read from corpus, tokenizers and models, which takes seconds; a run reads it once, when it
is first asked for, and hands it to every stage. So inputs must not change while a run lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sra_core.config import RunConfig
from sra_core.errors import ConfigError, ManifestMismatch, ShardError
from sra_core.processes import is_cuda, native_dtype
from sra_core.shards import Manifest, StageFolder, fingerprint, read_manifest, verify
from sra_core.watch import Watcher, watched

__all__ = ["ORDER", "Run", "settled"]

ORDER = ("prepare", "adapt", "cache", "distill", "evaluate")
"""All stages, in the order in which they run; the package or module of each one's name tells its ``identity(run)``."""


class Run:
    """One config, settled for this machine, and what follows from it.

    Args:
        config: The run config.
        like: Another run: what identifies corpus and tokenizers is read once for both, where it is the same.
    """

    def __init__(self, config: RunConfig, like: Run | None = None) -> None:
        self.config = settled(config)
        self._identities: dict[str, dict[str, Any]] = {}
        self._inputs: dict[str, dict[str, Any]] = {} if like is None else like._inputs

    @classmethod
    def of(cls, config: RunConfig | Run) -> Run:
        """The run of a config; a run is itself.

        Raises:
            ConfigError: It is neither.
        """
        if isinstance(config, Run):
            return config
        if not isinstance(config, RunConfig):
            raise ConfigError(f"{config!r} is no config", 'build one: load_config("smoke"), or of a file of yours')
        return cls(config)

    @property
    def stages(self) -> list[str]:
        """Names of the stages that the config needs, in order."""
        wanted = {*self.trained_from, "distill", "evaluate"}
        if self.config.adapt.enabled:
            wanted.add("adapt")
        return [name for name in ORDER if name in wanted]

    @property
    def trained_from(self) -> tuple[str, ...]:
        """Stages whose results the student is trained from."""
        return ("prepare",) if self.config.objective.name == "sft" else ("prepare", "cache")

    @cached_property
    def adapted(self) -> RunConfig:
        """The config with the adapted teacher in the teacher's place, where there is to be one.

        Raises:
            ManifestMismatch: The teacher is not adapted yet.
        """
        if not self.config.adapt.enabled:
            return self.config
        # Its weights are part of what follows, so that names of later stages are known once it is there.
        adapted: RunConfig = _package("adapt").with_adapted_teacher(self.config, self.result("adapt"))
        return adapted

    def identity(self, stage: str) -> dict[str, Any]:
        """All that determines the bytes of a stage's result.

        Raises:
            ManifestMismatch: It depends on the adapted teacher, which is not there yet.
            SraError: An input cannot be read.
        """
        if stage not in self._identities:
            self._identities[stage] = self._inputs_identity() if stage == "prepare" else _package(stage).identity(self)
        return self._identities[stage]

    def _inputs_identity(self) -> dict[str, Any]:
        # All that `prepare` reads of the config: runs that agree in it share what was read.
        key = self.config.model_dump_json(include={"teacher", "student", "corpus", "alignment"})
        if key not in self._inputs:
            self._inputs[key] = _package("prepare").identity(self)
        return self._inputs[key]

    def fingerprint(self, stage: str) -> str:
        """The name of a stage's result."""
        return fingerprint(self.identity(stage))

    def folder(self, stage: str) -> StageFolder:
        """The folder that holds, or would hold, the result of a stage."""
        folder = StageFolder(self.config.store, stage, self.identity(stage))
        if stage == "cache":
            serving: StageFolder = _package("cache").find_cache(folder)  # one that holds more serves as well
            return serving
        return folder

    def result(self, stage: str) -> Manifest:
        """The finished result of a stage.

        Raises:
            ManifestMismatch: There is none; names the fields in which the nearest result in the store differs.
        """
        folder = self.folder(stage)
        manifest = folder.manifest()
        if manifest is None:
            raise ManifestMismatch(*folder.missing(f"sra {stage}"))
        return manifest

    @property
    def finished(self) -> bool:
        """Whether the last stage's result is there."""
        try:
            return self.folder("evaluate").manifest() is not None
        except ManifestMismatch:
            return False

    def verified(self, stage: str) -> Manifest:
        """The result of a stage after reading every byte of it.

        A damaged result counts as unfinished from then on: the stage mends it when it is run again.

        Raises:
            ManifestMismatch: There is none.
            ShardError: Names the first file that is missing, truncated or changed.
        """
        folder = self.folder(stage)
        try:
            damaged = folder.manifest() is None and folder.manifest_path.exists()
            manifest = read_manifest(folder.path) if damaged else self.result(stage)
            verify(folder.path, [*manifest.shards, *manifest.files], full=True)
        except ShardError:
            folder.reset()
            raise
        return manifest

    def once(
        self,
        folder: StageFolder,
        watch: Watcher,
        upstream: Iterable[Manifest],
        plan: str,
        work: Callable[[], Manifest],
        check: Callable[[Manifest], None] = lambda manifest: None,
        shared: bool = False,
    ) -> Manifest:
        """A stage's result: the one that is there and whole, or the one that ``work`` makes under the folder's lock.

        Args:
            folder: Where it lies or goes.
            watch: Told of begin, end and failure.
            upstream: The results that it is made from; one made from others counts as missing.
            plan: What a person reads before it is made.
            work: Makes it.
            check: Looks at it, new or old; raises what forbids to go on.
            shared: Whether any number of processes may be at it; ``work`` then sees to it that they share.
        """
        upstream = list(upstream)
        lock = folder.lock(lambda: watch.message("another process works on this result; waiting for it"))
        with nullcontext() if shared else lock:
            # Under the lock, where there is one: who waited for another process finds what that one has made.
            manifest = folder.manifest(upstream)
            reused = manifest is not None
            with watched(watch, folder.stage, folder.fingerprint, self.config, plan, reused=reused):
                if manifest is None:
                    # Shared work does so itself, under a guard: here it could take away what others have just finished.
                    if not shared:
                        folder.reset()
                    manifest = work()
                # On a reused result too: bounds such as `alignment.gate` are no part of its name and may have changed.
                check(manifest)
                watch.end(manifest)
        return manifest


def settled(config: RunConfig) -> RunConfig:
    """The config with what depends on the machine resolved; the one given stays as it is.

    What ``auto`` types of numbers come to determines results: two machines that compute in different types name
    different results; so do two of which one generates with vLLM. In half precision ZeRO 0 is ZeRO 1: for ZeRO 0
    DeepSpeed (0.19) has an optimizer of its own that takes a step with zero gradients when it is built. That decays the
    weights, and counts as Adam's first step, so that the first real ones come out a quarter smaller than in float32.
    ZeRO 1 takes no such step, and where one process trains it costs nothing more.
    """
    found = config.model_copy(deep=True)
    if found.cache.compute_dtype == "auto":
        found.cache.compute_dtype = native_dtype(found.cache.device)  # type: ignore[assignment]
    for part in (found.adapt, found.distill):
        if part.precision == "auto":
            part.precision = native_dtype(part.device)  # type: ignore[assignment]
        if part.precision != "float32":
            part.zero_stage = max(part.zero_stage, 1)
    evaluate = found.evaluate
    if (
        evaluate.generate != 0
        and evaluate.backend == "auto"
        and find_spec("vllm") is not None
        and is_cuda(evaluate.device)
    ):
        evaluate.backend = "vllm"
    return found


def _package(stage: str) -> Any:
    """The package or module of a stage's name.

    Found by name, not imported above: they build on this module, and the run asks them what their result is.
    """
    return import_module(f"sra_core.{stage}")
