"""Read items from the rows of a table: CSV, TSV and Parquet. Columns that JSON lines know as keys are settings."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvlite.batch.codecs import SETTINGS, decode_openai, decode_simple
from kvlite.batch.item import Item, LineError, failure_of
from kvlite.batch.values import parse_json
from kvlite.errors import MissingPackage, UsageError

Tell = Callable[[list[str]], None]
"""Is told the columns that are settings, once they are known."""

DELIMITERS = {"csv": ",", "tsv": "\t"}
_LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit of 131,072 is shorter than a long prompt
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of other bytes
_ROWS_AT_ONCE = 1024
_TEXTS = {"model", "system"}  # settings that are text as it stands
_WORDS = {"true": True, "false": False}


def text_rows(lines: Iterable[bytes], layout: str, prompt_column: str, tell: Tell) -> Iterator[Item]:
    """Read the items of CSV or TSV, whose cells may be quoted and hold newlines. Raises UsageError where it is none."""
    csv.field_size_limit(_LONGEST_CELL)
    decoded = (line.decode("utf-8", "surrogateescape") for line in lines)
    rows = csv.reader(decoded, strict=True, delimiter=DELIMITERS[layout])
    try:
        header = next(filter(None, rows), [])
        if header:
            _check(header, prompt_column, tell)
        line, index = rows.line_num + 1, 0
        for row in rows:
            if row:
                yield _text_row(header, row, prompt_column, Item(index, line, f"line-{line}"))
                index += 1
            line = rows.line_num + 1
    except csv.Error as error:
        is_cr = "new-line character" in str(error)
        why = "it ends in CR alone; write LF" if is_cr else f"{error}; quote cells that hold quotes"
        raise UsageError(f"line {rows.line_num} is not {layout.upper()}: {why}") from None


def parquet_rows(path: Path, prompt_column: str, tell: Tell) -> Iterator[Item]:
    """Read the items of a Parquet file, a thousand rows at a time; lines are its rows, from 1.

    Raises UsageError where it is none, MissingPackage without pyarrow.
    """
    with _parquet(path) as file:
        header = file.schema_arrow.names
        _check(header, prompt_column, tell)
        index = 0
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield _row(row, prompt_column, Item(index, index + 1, f"line-{index + 1}"))
                index += 1


def count_parquet_rows(path: Path) -> int:
    """Count the rows of a Parquet file by its footer. Raises UsageError and MissingPackage."""
    with _parquet(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingPackage('Parquet needs pyarrow; `pip install "kvlite-llm[parquet]"`') from error
    try:
        with ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"cannot read {path} as Parquet: {reason}") from error


def _check(header: list[str], prompt_column: str, tell: Tell) -> None:
    """Raise UsageError where no column holds prompts or two have one name, and tell of those that are settings."""
    if twice := [name for name, times in Counter(header).items() if times > 1]:
        raise UsageError(f"two columns are called {twice[0]!r}; rename one of them")
    if not {prompt_column, "messages", "body"} & {*header}:
        raise UsageError(f"no column {prompt_column!r}; columns are {', '.join(header)} (--prompt-column)")
    tell([name for name in header if name in SETTINGS and name != prompt_column])


def _text_row(header: list[str], row: list[str], prompt_column: str, item: Item) -> Item:
    try:
        if len(row) != len(header):
            raise LineError(f"the row has {len(row)} cells under {len(header)} columns")
        if any(map(_NOT_UTF8.search, row)):
            raise LineError("not UTF-8")
    except LineError as refused:
        key = dict(zip(header, row, strict=False)).get("id", "")
        return replace(item, key=key if key and not _NOT_UTF8.search(key) else item.key, failure=refused.failure)
    return _row(dict(zip(header, row, strict=True)), prompt_column, item)


def _row(cells: Mapping[str, object], prompt_column: str, item: Item) -> Item:
    """Complete an item by the cells of its row; columns that are nothing else are its metadata."""
    try:
        left = {name: _plain(value) for name, value in cells.items()}
        for name in ("custom_id", "id"):
            if (key := left.pop(name, None)) not in (None, ""):
                item = replace(item, key=str(key))
                break
        prompt = left.pop(prompt_column, None)
        settings = {name: _setting(name, left.pop(name)) for name in [*left] if name in SETTINGS}
        body = _setting("body", left.get("body"))
        if isinstance(body, dict):
            return decode_openai({**left, "body": body}, replace(item, form="openai"))
        return decode_simple({**settings, "prompt": prompt}, replace(item, metadata=left or None))
    except Exception as error:  # no row ends a batch
        return replace(item, failure=failure_of(error))


def _setting(name: str, value: object) -> object:
    """The value that a cell means: JSON written as text is read, a whole number stored as a float is one."""
    if isinstance(value, str) and name not in _TEXTS:
        if not value.strip():
            return None
        if name == "stop" and not value.lstrip().startswith("["):
            return value
        try:
            word = value.strip().lower()  # spreadsheets write TRUE, pandas True
            value = _WORDS[word] if word in _WORDS else parse_json(value.encode())
        except LineError:  # whoever reads the setting says what it is to be
            return value
    if value in ("", [], {}):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    """The value without the fields of objects that are null: Parquet has them in every row."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """The value as JSON has it: times and whatever else as text, what is no number as null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return value.decode(errors="backslashreplace")
        case dict():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case _:
            return value.isoformat() if hasattr(value, "isoformat") else str(value)
