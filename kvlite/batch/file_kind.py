"""Refuse an input that is as a whole something else than lines of UTF-8, by its first line."""

from __future__ import annotations

from kvlite.errors import UsageError

_BEGINNINGS = {
    b"\xff\xfe\x00\x00": ("in UTF-32", "iconv -f UTF-32 -t UTF-8 {}"),
    b"\xff\xfe": ("in UTF-16, as PowerShell's > writes it", "iconv -f UTF-16 -t UTF-8 {}"),
    b"\xfe\xff": ("in UTF-16", "iconv -f UTF-16 -t UTF-8 {}"),
    b"BZh": ("compressed by bzip2", "bzip2 -dc {}"),
    b"\xfd7zXZ": ("compressed by xz", "xz -dc {}"),
    b"(\xb5/\xfd": ("compressed by zstd", "zstd -dc {}"),
    b"PK\x03\x04": ("a zip archive or a workbook of Excel", "unzip -p {}"),
    b"PAR1": ("Parquet", "duckdb -c \"copy '{}' to '/dev/stdout' (format json)\""),
    b"SQLite format 3": ("a database of SQLite", "sqlite3 -json {} 'select ...' | jq -c '.[]'"),
}
"""Kinds of files by their first bytes, each with the command that writes lines of it to stdout."""


def refuse_other_kinds(first: bytes, name: str, *, is_json: bool) -> None:
    """Raise UsageError where the input `name`, whose first line is `first`, is no text or, of JSON, not a line each."""
    if first.startswith(b"PAR1") and name != "-":
        raise UsageError(f"{name} is Parquet; give --format parquet")
    for beginning, (kind, command) in _BEGINNINGS.items():
        if first.startswith(beginning):
            raise _refusal(name, kind, command)
    if b"\0" in first[:4]:
        order = "LE" if first[:1] != b"\0" else "BE"
        raise _refusal(name, f"in UTF-16{order}", f"iconv -f UTF-16{order} -t UTF-8 {{}}")
    begun = first.strip()
    if is_json and begun.startswith(b"["):
        raise _refusal(name, "one JSON array, not a line for each record", "jq -c '.[]' {}")
    if is_json and begun == b"{":
        raise _refusal(name, "JSON over several lines, not a line for each record", "jq -c . {}")


def _refusal(name: str, kind: str, command: str) -> UsageError:
    source, shown = ("stdin", "FILE") if name == "-" else (name, name)
    return UsageError(f"{source} is {kind}; make lines of it: {command.format(shown)} > lines.jsonl")
