"""Files become entries, read as a stream."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.batch.ids import SeenIds, with_unique_ids
from kvlite.batch.item import Code, Item
from kvlite.batch.source import Input, Survey, in_shard, parse_shard
from kvlite.errors import UsageError
from kvlite.options import BatchOptions


def prompts(entries: list[Item]) -> list[str | None]:
    return [entry.prompt if entry.failure is None else None for entry in entries]


def source(name: str | Path = "-", **options: Any) -> Input:
    return Input(BatchOptions(input=str(name), **options))


def read(data: bytes, layout: str = "auto", **options: Any) -> list[Item]:
    return list(source(format=layout, **options).read(data.splitlines(keepends=True)))


def test_blank_lines_byte_order_mark_and_crlf_are_no_content() -> None:
    entries = read(b'\xef\xbb\xbf"a"\r\n\r\n  \n{"prompt":"b"}')
    assert prompts(entries) == ["a", "b"]
    assert [(entry.index, entry.line, entry.key) for entry in entries] == [
        (0, 1, "line-1"),
        (1, 4, "line-4"),
    ]


def test_a_line_that_is_not_utf8_is_one_bad_line() -> None:
    assert prompts(read(b'"a"\n"\xff"\n"b"\n')) == ["a", None, "b"]
    assert prompts(read(b"a\n\xff\nb\n", "text")) == ["a", None, "b"]


def test_plain_lines_keep_spaces_and_unescape_on_request() -> None:
    assert prompts(read(b"  a\\nb \n", "text")) == ["  a\\nb "]
    assert prompts(read(b"a\\nb\\\\n\\t\\x\n", "text", escape=True)) == ["a\nb\\n\t\\x"]


def test_csv_cells_span_lines_and_other_columns_are_metadata() -> None:
    data = b'id,prompt,topic\r\na,"one\ntwo",x\n,"q ""q""",y\n'
    first, second = read(data, "csv")
    assert (first.key, first.prompt, first.metadata) == ("a", "one\ntwo", {"topic": "x"})
    assert (second.key, second.prompt, second.line) == ("line-4", 'q "q"', 4)


def test_csv_rows_that_cannot_be_asked_are_bad_lines() -> None:
    entries = read(b"prompt,n\na\nb,1,2\n\xff,1\n,1\nok,1\n", "csv")
    assert prompts(entries) == [None, None, None, None, "ok"]
    said = [entry.failure.message for entry in entries if entry.failure]
    assert ["1 cells" in said[0], "3 cells" in said[1], "UTF-8" in said[2], "empty" in said[3]] == [True] * 4


def test_csv_names_the_columns_there_are() -> None:
    with pytest.raises(UsageError, match=r"no column 'prompt'; columns are question, answer"):
        read(b"question,answer\na,b\n", "csv")
    assert prompts(read(b"question\na\n", "csv", prompt_column="question")) == ["a"]


def test_csv_with_an_open_quote_names_the_line() -> None:
    with pytest.raises(UsageError, match="line 2 is not CSV"):
        read(b'prompt\n"never closed\n', "csv")


def test_csv_prompts_may_be_long() -> None:
    assert prompts(read(b"prompt\n" + b"x" * 200_000 + b"\n", "csv")) == ["x" * 200_000]


def test_layout_follows_the_name() -> None:
    names = {"a.csv": "csv", "a.TXT": "text", "a.jsonl": "auto", "-": "auto", "a.tsv.gz": "tsv", "a.parquet": "parquet"}
    assert {name: source(name).layout for name in names} == names


def survey(folder: Path, lines: list[bytes], **options: Any) -> Survey:
    (folder / "in.jsonl").write_bytes(b"".join(lines))
    return source(folder / "in.jsonl", **options).survey()


def test_a_survey_counts_hashes_and_finds_the_model(tmp_path: Path) -> None:
    lines = [b'"a"\n', b"broken\n", b'{"prompt":"b","model":"m"}\n', b'{"prompt":"c","model":"x"}\n']
    found = survey(tmp_path, lines, limit=2)
    assert (found.total, found.model) == (2, "m")
    assert found.sha256 == survey(tmp_path, lines).sha256
    assert found.sha256 != survey(tmp_path, lines[:3]).sha256


@pytest.mark.parametrize(
    "lines", [[b'{"id":"a","prompt":"x"}\n', b'"b"\n', b'{"id":"a","prompt":"y"}\n'],
              [b'{"id":"line-3","prompt":"x"}\n', b'"b"\n', b'"c"\n']]
)  # fmt: skip
def test_a_repeated_id_of_a_file_names_both_lines_even_beyond_the_limit(tmp_path: Path, lines: list[bytes]) -> None:
    with pytest.raises(UsageError, match=r"line 3 has the id .* of line 1"):
        survey(tmp_path, lines, limit=1)


def test_a_repeated_id_of_a_pipe_is_a_bad_line() -> None:
    entries = list(with_unique_ids(read(b'{"id":"a","prompt":"x"}\n{"id":"a","prompt":"y"}\n{"id":"a","prompt":"z"}')))
    assert [entry.failure.code for entry in entries if entry.failure] == [Code.DUPLICATE] * 2
    assert len({entry.mark for entry in entries}) == 3


def test_a_long_file_begins_with_its_first_line_and_is_checked_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvlite.batch.source.SURVEYED_BYTES", 100)
    monkeypatch.setattr("kvlite.batch.ids.NAMED", 2)
    lines = [b'{"id":"a","prompt":"x","model":"m"}\n', b"\n", *(b'{"id":"%d","prompt":"x"}\n' % n for n in range(50))]
    lines += [b'{"id":"a","prompt":"y"}\n', b'{"id":"7","prompt":"y"}\n']
    whole = survey(tmp_path, lines)
    assert (whole.total, whole.model) == (53, "m")
    assert whole.sha256 == sha256(b"".join(lines)).hexdigest()
    failures = [item.failure for item in whole.items if item.failure is not None]
    assert [failure.code for failure in failures] == [Code.DUPLICATE] * 2
    assert [failure.message.partition("of ")[2] for failure in failures] == [
        "line 1; ids must differ",
        "an earlier line; ids must differ",
    ]
    assert survey(tmp_path, lines, skip=3, limit=10).total == 10
    assert survey(tmp_path, lines, shard="1/2").total is None


@given(st.lists(st.binary(min_size=8, max_size=8), max_size=3000), st.integers(0, 2**64 - 1))
def test_seen_ids_are_a_set(digests: list[bytes], number: int) -> None:
    digests = [*digests, bytes(8), number.to_bytes(8, "big"), *digests[:5]]
    seen, found = set[bytes](), SeenIds()
    for each in digests:
        each = max(each, (1).to_bytes(8, "big"))  # of the two least numbers one stands for both
        assert found.add(each) is (each not in seen)
        seen.add(each)


def test_shards_share_out_every_id_once() -> None:
    keys = [f"id-{number}" for number in range(200)]
    shares = [{key for key in keys if in_shard(key, index, 3)} for index in (1, 2, 3)]
    assert sorted(key for share in shares for key in share) == sorted(keys)
    assert all(share for share in shares)


def test_a_shard_never_changes() -> None:
    assert [key for key in "abcdefgh" if in_shard(key, 1, 2)] == ["g", "h"]


@pytest.mark.parametrize("written", ["", "1", "0/2", "3/2", "-1/2", "1/0", "a/b", "1/2/3", "١/٢"])
def test_a_shard_is_i_of_n(written: str) -> None:
    with pytest.raises(UsageError, match="1/4"):
        parse_shard(written)


def test_selection_skips_limits_and_leaves_out_what_is_done() -> None:
    entries = read(b'"a"\n"b"\n"c"\n"d"\n"e"\n')
    done = {entries[2].mark}
    assert prompts(list(source(skip=1, limit=3).select(entries, done))) == ["b", "d"]


def test_an_input_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*missing"):
        list(source(tmp_path / "missing.jsonl").items())
    with pytest.raises(UsageError, match="cannot read"):
        list(source(tmp_path).items())


def test_a_file_is_read_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f"{json.dumps(str(number))}\n" for number in range(3)))
    file = source(path)
    assert not file.is_pipe
    entries = file.items()
    assert prompts([next(entries)]) == ["0"]


WHOLE_FILES = [
    (
        '{"prompt": "a"}\n'.encode("utf-16"),
        "in UTF-16, as PowerShell's > writes it; make lines of it: iconv -f UTF-16 ",
    ),
    ('{"prompt": "a"}\n'.encode("utf-16-le"), "in UTF-16LE; make lines of it: iconv -f UTF-16LE -t UTF-8 FILE > lines"),
    ('{"prompt": "a"}\n'.encode("utf-16-be"), "in UTF-16BE; "),
    (b"\xfe\xff" + "a".encode("utf-16-be"), "in UTF-16; "),
    ("a".encode("utf-32"), "in UTF-32; "),
    (b"PK\x03\x04....", "a zip archive or a workbook of Excel; "),
    (b"PAR1....", "Parquet; "),
    (
        b'[{"prompt": "a"}, {"prompt": "b"}]\n',
        "one JSON array, not a line for each record; make lines of it: jq -c '.[]'",
    ),
    (b'[\n  {"prompt": "a"}\n]\n', "one JSON array, not a line for each record; "),
    (b'{\n  "prompt": "a"\n}\n', "JSON over several lines, not a line for each record; make lines of it: jq -c . "),
]


@pytest.mark.parametrize(("data", "says"), WHOLE_FILES)
def test_a_file_that_is_something_else_as_a_whole_is_refused_at_once(data: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=f"^stdin is {re.escape(says)}"):
        read(data)


@pytest.mark.parametrize("layout", ["text", "csv"])
def test_brackets_are_text_where_it_is_not_json(layout: str) -> None:
    assert prompts(read(b"[prompt]\nx\n", layout, prompt_column="[prompt]")) == ["[prompt]", "x"][layout == "csv" :]
