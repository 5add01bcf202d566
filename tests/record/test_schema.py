"""The record's schema: what is written reads back the same, and what cannot be written never gets in."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from kvlite.record.schema import RequestReport, RunRecord

ROOT = Path(__file__).parents[2]
STARTED = datetime(2025, 11, 20, 20, 11, 30, tzinfo=UTC)


def record(**fields: object) -> RunRecord:
    basis = {"run_id": "a", "command": "run", "started": STARTED, "ended": STARTED, "exit_code": 0}
    return RunRecord.model_validate(basis | fields)


def test_the_exported_schema_is_up_to_date() -> None:
    exported = json.loads((ROOT / "docs/report.schema.json").read_text(encoding="utf-8"))
    expected = RunRecord.model_json_schema()
    expected["properties"]["schema"].pop("enum", None)  # pydantic 2.9 writes it beside "const"
    assert exported == expected, "write it again as docs/report.md says"


def test_the_docs_explain_every_field() -> None:
    explained = (ROOT / "docs/report.md").read_text(encoding="utf-8")
    blocks = [RunRecord.model_json_schema(), *RunRecord.model_json_schema()["$defs"].values()]
    names = {name for block in blocks for name in block.get("properties", ())}
    assert sorted(name for name in names if f"`{name}`" not in explained) == []


def test_a_record_reads_back_the_same() -> None:
    written = record(requests=[{"id": "r", "tok_s": 41.5}], ended=STARTED + timedelta(seconds=2.5))
    assert RunRecord.model_validate_json(written.to_json()) == written
    assert written.seconds == 2.5


def test_the_schema_is_named_under_the_key_schema() -> None:
    assert record().to_json().startswith('{"schema":"kvlite.report/1"')


def test_fields_of_a_newer_kvlite_are_kept() -> None:
    assert '"later":7' in record(later=7).to_json()


@pytest.mark.parametrize("fields", [{"schema": "kvlite.report/2"}, {"exit_code": "x"}, {"started": "2025-11-20"}])
def test_another_schema_or_type_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        record(**fields)


@pytest.mark.parametrize("speed", [math.nan, math.inf, -math.inf])
def test_a_speed_that_is_no_number_was_not_measured(speed: float) -> None:
    assert json.loads(RequestReport(id="r", tok_s=speed).model_dump_json())["tok_s"] is None


def test_text_that_is_not_utf_8_can_be_written() -> None:
    assert '"argv":["?"]' in record(argv=["\udcff"]).to_json()
