"""Generated items: what is asked was told once, its value is the end of the right answer, and everything fits."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kvlite.catalog.names import demo_folder
from kvlite.errors import UsageError
from kvlite.evaluation.asking import holds
from kvlite.evaluation.item import Writer, own_prose
from kvlite.evaluation.suites import WRITERS, Suite
from kvlite.text.template import ChatText

writers = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
TOLD_ONCE = {name: write for name, write in WRITERS.items() if name not in ("tracking", "cloze")}


@pytest.fixture(scope="module")
def text() -> ChatText:
    return ChatText(AutoTokenizer.from_pretrained(demo_folder()))


@pytest.mark.parametrize("write", TOLD_ONCE.values(), ids=TOLD_ONCE)
@given(seed=st.integers(0, 10**6), size=st.integers(1500, 6000))
def test_a_value_was_told_once_where_it_is_recorded_and_the_question_does_not_hold_it(
    write: Writer, seed: int, size: int
) -> None:
    item = write(random.Random(seed), own_prose(), size)
    told = "".join(item.messages)
    assert item.questions
    for question in item.questions:
        assert not holds(question.ask + question.lead, question.value)
        if question.value[0].isdigit():
            assert told.count(question.value) == 1
            assert told.index(question.value) / len(told) == pytest.approx(question.where, abs=0.1)
        else:
            assert holds(told, question.value)


@writers
def test_an_item_is_a_function_of_its_seed(write: Writer) -> None:
    one, again, other = (write(random.Random(seed), own_prose(), 3000) for seed in (1, 1, 2))
    assert one == again != other


@writers
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 5000),
    prose=st.sampled_from([None, "a", "一天。" * 40, "no end " * 99]),
)
def test_every_size_of_every_text_gives_an_item(write: Writer, seed: int, size: int, prose: str | None) -> None:
    item = write(random.Random(seed), prose or own_prose(), size)
    assert all(0 < question.where <= 1 for question in item.questions)
    assert len(item.messages) % 2 == (write is WRITERS["prompt"])


@pytest.mark.parametrize("name", ["lines", "multikey"])
def test_there_are_names_for_items_of_any_length(name: str) -> None:
    item = WRITERS[name](random.Random(0), own_prose(), 400_000)
    told = re.findall(r"(?<=line | for )[a-z]+-[a-z]+(?:-\d+)?(?=: | is: )", item.messages[0])
    assert len(told) == len(set(told)) > 2112


@pytest.mark.parametrize("prose", ["彼は川の方へ歩いた。" * 400, "GET /index 200 " * 400, "x" * 9000])
def test_facts_lie_in_all_of_a_text_without_english_sentences(prose: str) -> None:
    found = [WRITERS["needles"](random.Random(seed), prose, 3200) for seed in range(9)]
    places = [question.where for item in found for question in item.questions]
    assert {int(5 * min(place, 0.999)) for place in places} == {*range(5)}


def test_a_chain_of_variables_is_all_told_in_the_order_of_the_answer() -> None:
    item = WRITERS["tracking"](random.Random(0), own_prose(), 3000)
    for question in item.questions:
        places = [item.messages[0].index(f"VAR {name} = ") for name in question.value.split(", ")]
        assert places == sorted(places) and len(places) == 3


def test_a_gap_of_a_text_is_a_name_or_number_behind_its_question() -> None:
    prose = " ".join(
        f"Then {name} Smith walked slowly along the river for {n} days." for n, name in enumerate("ABCDE", 20)
    )
    item = WRITERS["cloze"](random.Random(0), prose * 10, 1500)
    assert item.questions
    for question in item.questions:
        assert f"{question.lead}{question.value}" in item.messages[0]
        assert question.ask.startswith(f'A sentence of the text begins with "{question.lead.strip()}"')


@pytest.mark.parametrize("name", WRITERS)
def test_an_item_with_its_longest_question_fits_and_the_value_ends_the_answer(text: ChatText, name: str) -> None:
    for item in Suite(name, 3, 700).items(text):
        assert 300 < item.tokens <= 700
        for question in item.questions:
            value = text.tokenizer.decode(question.answer[question.start :])
            assert value.strip() == question.value
            assert 0 <= question.back < len(item.prefix)


def test_a_prompt_has_its_question_behind_what_all_questions_share(text: ChatText) -> None:
    (item,) = Suite("prompt", 1, 700).items(text)
    (needles,) = Suite("needles", 1, 700).items(text)
    asked = [text.tokenizer.decode(question.prompt.ids) for question in item.questions]
    assert len(set(asked)) == len(asked) > 1
    assert all("?" in question and text.tokenizer.decode(item.prefix).count(question) == 0 for question in asked)
    assert not any(question.prompt.ids[: len(needles.prefix)] == item.prefix for question in item.questions)


def test_too_short_a_length_is_refused(text: ChatText) -> None:
    with pytest.raises(UsageError, match="give a longer --length"):
        Suite("needles", 1, 20).items(text)


def test_every_kind_of_fact_is_asked_for(text: ChatText) -> None:
    for name, kinds in (("needles", 4), ("dialogue", 5)):
        asked = Counter(q.kind for item in Suite(name, 20, 700).items(text) for q in item.questions)
        assert len(asked) == kinds and min(asked.values()) >= 3


@pytest.mark.parametrize("answer", ["It is 17.", "On the 17, I think.", "17!", "That is 17, not 18.", "(17)"])
def test_a_number_counts_however_it_stands_in_the_sentence(answer: str) -> None:
    assert holds(answer, "17")


@pytest.mark.parametrize("answer", ["It was 17.50 euros.", "At 17:30.", "It is 3.17.", "117", "17thing"])
def test_a_part_of_another_number_does_not_count(answer: str) -> None:
    assert not holds(answer, "17")
