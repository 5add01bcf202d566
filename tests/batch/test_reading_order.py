"""Lines of a file that begin alike are read one behind the other, and each is the line that it was."""

from __future__ import annotations

import gzip
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.batch import source
from kvlite.batch.item import Item
from kvlite.batch.reading_order import ReadingOrder
from kvlite.batch.source import Input
from kvlite.options import BatchOptions

WINDOW = 8
NUM_DOCUMENTS, NUM_QUESTIONS = 20, 3


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "AHEAD", WINDOW)


def document(number: int) -> str:
    return " ".join(random.Random(number).choices(["one", "sea", "and", "land", "rivers", "to"], k=60))


def in_rounds() -> list[str]:
    """A question to each document, then the next one to each: what is alike is further apart than the window."""
    return [f"{document(one)} Question {asked}" for asked in range(NUM_QUESTIONS) for one in range(NUM_DOCUMENTS)]


def written(lines: list[Any], file: Path, ends: str = "\n") -> Path:
    file.write_bytes("".join((line and json.dumps(line)) + ends for line in lines).encode())
    return file


def items(file: Path, **options: Any) -> list[Item]:
    return [*Input(BatchOptions(input=str(file), **options)).survey().items]


@pytest.mark.parametrize("is_long", [False, True])
def test_lines_that_begin_alike_follow_one_another_however_far_apart_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    if is_long:
        monkeypatch.setattr(source, "SURVEYED_BYTES", 100)
    prompts = in_rounds()
    found = items(written(prompts, tmp_path / "in.jsonl"))
    assert found[0].index == 0
    assert [prompts[one.index] for one in found] == [one.prompt for one in found]
    assert sorted(one.index for one in found) == [*range(len(prompts))]
    begins = [str(one.prompt).partition(" Question")[0] for one in found[1:]]  # behind the first line
    changes = sum(one != other for one, other in pairwise(begins))
    assert changes == NUM_DOCUMENTS - 1


@given(st.permutations(range(12)), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_blank_lines_marks_and_ends_of_lines_move_nothing(order: list[int], ends: str, has_mark: bool) -> None:
    lines: list[Any] = [f"{document(one % 4)} {one}" if one < 10 else "" for one in order]
    text = "".join((line and json.dumps(line)) + ends for line in lines).encode()
    noted = ReadingOrder(is_json=True)
    data = b"\xef\xbb\xbf" * has_mark + text
    for line in data.splitlines(keepends=True):
        noted.add(line)
    if noted.sort(2):
        places = [*noted.places()]
        assert sorted(place.index for place in places) == [*range(10)]
        for place in places:
            line = data[place.offset :].splitlines()[0].removeprefix(b"\xef\xbb\xbf")
            assert json.loads(line) == lines[place.line - 1] == [one for one in lines if one][place.index]


@pytest.mark.parametrize(
    "options", [{"ordered": True}, {"limit": 50}, {"skip": 2}, {"prefix_cache": False}, {"out_format": "text"}]
)
def test_an_order_that_was_asked_for_is_kept(tmp_path: Path, options: dict[str, Any]) -> None:
    found = items(written(in_rounds(), tmp_path / "in.jsonl"), **options)
    assert [one.index for one in found] == [*range(len(found))]


def test_lines_that_share_nothing_or_stand_together_are_read_as_they_are(tmp_path: Path) -> None:
    alone = [document(number) for number in range(40)]
    together = [f"{document(number // 4)} {number}" for number in range(40)]
    for lines in (alone, together, in_rounds()[:WINDOW], []):
        found = items(written(lines, tmp_path / "in.jsonl"))
        assert [one.prompt for one in found] == lines


def test_what_gzip_compressed_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl.gz"
    file.write_bytes(gzip.compress(written(in_rounds(), tmp_path / "in.jsonl").read_bytes()))
    assert [one.prompt for one in items(file)] == in_rounds()


def test_shards_take_their_lines_of_the_order(tmp_path: Path) -> None:
    file = written([{"id": f"r{n}", "prompt": text} for n, text in enumerate(in_rounds())], tmp_path / "in.jsonl")
    shares = [items(file, shard=f"{share}/2") for share in (1, 2)]
    taken = [[*Input(BatchOptions(input=str(file), shard=f"{n}/2")).select(share)] for n, share in enumerate(shares, 1)]
    assert sorted(one.index for share in taken for one in share) == [*range(NUM_DOCUMENTS * NUM_QUESTIONS)]
