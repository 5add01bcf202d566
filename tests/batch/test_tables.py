"""Rows of tables are items: their columns are settings, where they have such names, else metadata."""

from __future__ import annotations

import csv
import gzip
import io
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.batch.item import Item
from kvlite.batch.source import Input
from kvlite.errors import MissingPackage, UsageError
from kvlite.options import BatchOptions


def source(path: Path, **options: Any) -> Input:
    return Input(BatchOptions(input=str(path), **options))


def items(path: Path, data: str, **options: Any) -> list[Item]:
    path.write_text(data)
    return [*source(path, **options).survey().items]


def parquet(path: Path, rows: list[dict[str, Any]], **options: Any) -> list[Item]:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not here")
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(rows), path)
    return [*source(path, **options).survey().items]


def test_columns_named_as_keys_are_settings_of_their_rows(tmp_path: Path) -> None:
    first, second, third = items(
        tmp_path / "in.csv",
        "id,prompt,system,max_tokens,temperature,stop,logprobs,response_format,topic\n"
        'a,Hi,Be brief,5,0.5,".",TRUE,"{""type"": ""text""}",x\n'
        'b,Ho,,7.0,,"["".""\n, ""!""]",,,y\n'
        "c,He,,many,,,,,z\n",
    )
    assert (first.max_tokens, first.sampling, first.stop) == (5, {"temperature": 0.5}, (".",))
    assert first.settings == {"grammar": None, "logprobs": 0} and first.messages[0]["content"] == "Be brief"
    assert (second.prompt, second.max_tokens, second.sampling, second.stop) == ("Ho", 7, {}, (".", "!"))
    assert [one.metadata for one in (first, second)] == [{"topic": "x"}, {"topic": "y"}]
    assert third.failure is not None and third.failure.message == "max_tokens is a string; give a whole number"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1))
def test_every_text_survives_a_table(texts: list[str]) -> None:
    for layout, delimiter in (("csv", ","), ("tsv", "\t")):
        written = io.StringIO(newline="")
        csv.writer(written, delimiter=delimiter).writerows([["prompt", "x"], *([text, text] for text in texts)])
        lines = io.BytesIO(written.getvalue().encode())
        read = Input(BatchOptions(input="-", format=layout)).read(lines)
        assert [(item.prompt, item.metadata["x"]) for item in read] == [(text, text) for text in texts]


def test_a_cell_that_is_nested_too_deeply_is_a_failure_of_its_row(tmp_path: Path) -> None:
    deep = "[" * 50_000 + "]" * 50_000
    rows = items(tmp_path / "in.csv", f"id,prompt,logit_bias\na,Hi,{deep}\nb,Ho,\n")
    assert [(row.key, row.failure is None) for row in rows] == [("a", False), ("b", True)]
    for depth in range(300, 1000, 50):
        deep = "[" * depth + "]" * depth
        (row,) = items(tmp_path / "in.csv", f"id,prompt,logit_bias\na,Hi,{deep}\n")
        assert (row.key, row.failure is None) == ("a", False)


def test_a_table_says_which_columns_are_settings(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("seed\tprompt\ttopic\n1\tHi\ta\n")
    table = source(tmp_path / "in.tsv")
    table.survey()
    assert table.setting_columns == ["seed"]
    assert next(table.items()).sampling == {"seed": 1}


@pytest.mark.parametrize("name", ["in.jsonl.gz", "in.jsonl"])
def test_what_is_compressed_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b'"a"\n') + gzip.compress(b'"b"\n'))
    found = source(tmp_path / name).survey()
    assert ([item.prompt for item in found.items], found.total) == (["a", "b"], 2)


def test_compressed_data_that_are_cut_or_damaged_are_one_line(tmp_path: Path) -> None:
    whole = gzip.compress(b'"a"\n' * 1000)
    for data, reason in ((whole[:-9], "in the middle"), (whole[:20] + b"\xff" + whole[21:], "damaged")):
        (tmp_path / "in.jsonl.gz").write_bytes(data)
        with pytest.raises(UsageError, match=reason):
            source(tmp_path / "in.jsonl.gz").survey()


def test_what_is_compressed_twice_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "in.csv.gz").write_bytes(gzip.compress(gzip.compress(b"prompt\nHi\n")))
    with pytest.raises(UsageError, match="by gzip twice; unpack it once"):
        [*source(tmp_path / "in.csv.gz").survey().items]


def test_blank_lines_may_come_before_the_header(tmp_path: Path) -> None:
    assert [item.prompt for item in items(tmp_path / "in.csv", "\n\nid,prompt\na,Hi\n")] == ["Hi"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("id,prompt,prompt\na,b,c\n", "two columns are called 'prompt'"),
        ("topic,topic,prompt\na,b,c\n", "two columns are called 'topic'"),
        ("prompt\rHi\rHo\r", "ends in CR alone"),
    ],
)
def test_a_table_that_would_lose_cells_is_refused(tmp_path: Path, data: str, says: str) -> None:
    (tmp_path / "in.csv").write_bytes(data.encode())
    with pytest.raises(UsageError, match=says):
        [*source(tmp_path / "in.csv").survey().items]


def test_a_conversation_needs_no_prompt_in_its_row(tmp_path: Path) -> None:
    cells = '"[{""role"":""user"",""content"":""Hi""}]"'
    both, chat = items(tmp_path / "in.csv", f"prompt,messages\nHo,{cells}\n,{cells}\n")
    assert both.failure is not None and "both given" in both.failure.message
    assert chat.failure is None and chat.messages


def test_parquet_has_typed_cells(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi", "name": None}, {"role": "assistant", "content": "Ho", "name": "x"}]
    day = datetime(2026, 1, 2)
    rows = [
        {"prompt": None, "messages": messages, "max_tokens": 5.0, "stop": ["."], "day": day, "score": 0.5},
        {"prompt": "Hi", "messages": None, "max_tokens": None, "stop": None, "day": day, "score": float("nan")},
    ]
    first, second = parquet(tmp_path / "in.parquet", rows)
    assert [message["content"] for message in first.messages] == ["Hi", "Ho"]
    assert (first.max_tokens, first.stop, first.key) == (5, (".",), "line-1")
    assert first.metadata == {"day": "2026-01-02T00:00:00", "score": 0.5}
    assert (second.prompt, second.max_tokens, second.stop, second.line) == ("Hi", None, None, 2)
    assert second.metadata["score"] is None


def test_an_id_may_be_zero(tmp_path: Path) -> None:
    rows = [{"id": 0, "prompt": "Hi"}, {"id": 1, "prompt": "Ho"}]
    assert [item.key for item in parquet(tmp_path / "in.parquet", rows)] == ["0", "1"]


def test_parquet_holds_lines_of_the_batch_api(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5, "tools": None}
    (item,) = parquet(tmp_path / "in.parquet", [{"custom_id": "r", "url": "/v1/chat/completions", "body": body}])
    assert (item.form, item.key, item.failure, item.unsupported) == ("openai", "r", None, ())
    assert item.messages[0]["content"] == "Hi" and item.sampling == {"temperature": 0.5}


def test_a_long_parquet_is_counted_by_its_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvlite.batch.source.SURVEYED_BYTES", 100)
    parquet(tmp_path / "in.parquet", [{"prompt": f"{number}"} for number in range(3000)])
    found = source(tmp_path / "in.parquet").survey()
    assert found.total == 3000 and [int(item.prompt) for item in found.items] == [*range(3000)]


def test_parquet_that_is_none_and_a_missing_pyarrow_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not here")
    (tmp_path / "in.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match="as Parquet") as refused:
        source(tmp_path / "in.parquet").survey()
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match="--format parquet"):
        items(tmp_path / "in.bin", "PAR1...")
    with pytest.raises(UsageError, match="not a pipe"):
        Input(BatchOptions(input="-", format="parquet")).survey()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackage, match=r"kvlite-llm\[parquet\]"):
        source(tmp_path / "in.parquet").survey()
