"""What a file really is, by its first bytes: what can be read whatever its name, and what to do about the rest."""

from __future__ import annotations

import codecs

__all__ = ["HEAD", "mend", "what_is"]

HEAD = 512
"""Bytes to look at."""

_MAGIC: dict[str, tuple[bytes, ...]] = {
    "gzip": (b"\x1f\x8b",),
    "zstd": (b"\x28\xb5\x2f\xfd",),
    "parquet": (b"PAR1",),
    "arrow": (b"ARROW1",),
    "zip": (b"PK\x03\x04", b"PK\x05\x06"),
    "xz": (b"\xfd7zXZ\x00",),
    "bzip2": (b"BZh",),
    "7z": (b"7z\xbc\xaf\x27\x1c",),
    "lfs": (b"version https://git-lfs.github.com/",),
    "sqlite": (b"SQLite format 3\x00",),
    "pdf": (b"%PDF-",),
    "hdf5": (b"\x89HDF\r\n\x1a\n",),
    "avro": (b"Obj\x01",),
    # Longer marks first: UTF-32 begins like UTF-16.
    "UTF-32LE": (codecs.BOM_UTF32_LE,),
    "UTF-32BE": (codecs.BOM_UTF32_BE,),
    "UTF-16LE": (codecs.BOM_UTF16_LE,),
    "UTF-16BE": (codecs.BOM_UTF16_BE,),
}
_WHAT = {
    "gzip": ("gzip inside of gzip or zstd", "unpack it: gzip -dc {path} > data"),
    "zstd": ("zstd inside of gzip or zstd", "unpack it: zstd -dc {path} > data"),
    "parquet": ("Parquet inside of gzip or zstd", "unpack it and name it .parquet"),
    "arrow": ("an Arrow file inside of gzip or zstd", "unpack it and name it .arrow"),
    "zip": ("a zip archive (as .xlsx files are too)", "unpack it: unzip {path}; save a spreadsheet as CSV (UTF-8)"),
    "tar": ("a tar archive", "unpack it: tar -xf {path}"),
    "xz": ("an xz archive", "unpack it: xz -dk {path}"),
    "bzip2": ("a bzip2 archive", "unpack it: bzip2 -dk {path}"),
    "7z": ("a 7z archive", "unpack it: 7z x {path}"),
    "lfs": (
        "a Git LFS pointer, not the data itself",
        "fetch the data: git lfs pull, in the repository that it is from",
    ),
    "sqlite": (
        "an SQLite database",
        "export the table: sqlite3 -json {path} 'select * from TABLE' | jq -c '.[]' > data.jsonl",
    ),
    "pdf": ("a PDF document", "convert it to one of the formats that can be read"),
    "hdf5": ("an HDF5 file", "convert it to Parquet"),
    "avro": ("an Avro file", "convert it to Parquet"),
    "html": (
        "a web page (HTML), as a download gives that failed or needs a login",
        "download it again; on the Hugging Face hub an address of the file has /resolve/ where the page has /blob/",
    ),
}


def what_is(head: bytes) -> str:
    """What a file is, of those that are not plain text in UTF-8; empty for anything else.

    Args:
        head: Its first `HEAD` bytes.
    """
    for name, marks in _MAGIC.items():
        if head.startswith(marks):
            return name
    if head[257:262] == b"ustar":
        return "tar"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    # Text in two bytes a character has a zero in every other one, where its letters are Latin.
    even, odd = head[0:64:2], head[1:64:2]
    if len(head) >= 4 and not any(odd) and all(even):
        return "UTF-16LE"
    if len(head) >= 4 and not any(even) and all(odd):
        return "UTF-16BE"
    return ""


def mend(kind: str, path: str) -> tuple[str, str]:
    """What to tell a reader whose file is of a kind: what it is, and the command that mends it."""
    if kind.startswith("UTF-"):
        ending = path.rpartition(".")[2]
        return f"text in {kind}, where UTF-8 is read", f"convert it: iconv -f {kind} -t UTF-8 {path} > utf8.{ending}"
    what, remedy = _WHAT[kind]
    return what, remedy.format(path=path)
