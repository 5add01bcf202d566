"""Markdown on a terminal: what is drawn for which answer, however it comes in pieces."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.chat.markdown import MOST_HELD, MarkdownStream
from kvlite.chat.words import WordStream, without_sgr
from kvlite.record.table import width_of


def drawn(source, width=60, step=3, has_color=True):
    stream = MarkdownStream(lambda: width, has_color=has_color)
    return "".join(stream.push(source[at : at + step]) for at in range(0, len(source), step)) + stream.finish()


def seen(source, **how):
    return without_sgr(drawn(source, **how))


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("plain words", "plain words\n"),
        ("# Title", "\x1b[1;4mTitle\x1b[0m\n"),
        ("some **bold** word", "some \x1b[1mbold\x1b[0m word\n"),
        ("*it*, `x1` and ~~gone~~", "\x1b[3mit\x1b[0m, \x1b[36mx1\x1b[0m and \x1b[9mgone\x1b[0m\n"),
        ("- one\n  - two\n3. three", "\x1b[1m• \x1b[0mone\n  \x1b[1m• \x1b[0mtwo\n\x1b[1m3. \x1b[0mthree\n"),
        ("- [ ] open\n- [x] done", "\x1b[1m☐ \x1b[0mopen\n\x1b[1m☑ \x1b[0mdone\n"),
        ("> said", "\x1b[2m▌ \x1b[0msaid\n"),
        ("[here](https://a.b/c_d)", "\x1b[4mhere\x1b[0m \x1b[2m(https://a.b/c_d)\x1b[0m\n"),
        ("---", "\x1b[2m" + "─" * 59 + "\x1b[0m\n"),
    ],
)  # fmt: skip
def test_a_block_is_drawn_in_its_style(source, shown):
    assert drawn(source) == shown == drawn(source, step=1)


@pytest.mark.parametrize(
    "source",
    [
        "snake_case_name",
        "5 * 3 * 2",
        "an **unclosed",
        "a `tick",
        r"\( x_1 \)",
        "a [bracket",
        "<b>tag</b>",
        "#hash",
        "-1",
    ],
)
def test_what_is_no_markdown_is_shown_as_it_is(source):
    assert seen(source) == f"{source}\n"


def test_words_appear_before_their_line_ends():
    stream = MarkdownStream(lambda: 60, has_color=False)
    shown = [without_sgr(stream.push(part)) for part in ("-", " one", " two", " **thr", "ee", "** fo", "ur\n")]
    assert shown == ["", "• ", "one", " two", "", " three", " four\n"]


def test_lines_break_between_words_under_the_words_of_their_item():
    assert (
        seen("1. " + "word " * 12, width=30)
        == "1. " + "\n   ".join(["word word word word word"] * 2) + "\n   word word\n"
    )


def test_chinese_breaks_anywhere_but_before_a_full_stop():
    lines = seen("字" * 20 + "。" + "字" * 9, width=41).splitlines()
    assert [width_of(line) for line in lines] == [38, 22] and not any(line.startswith("。") for line in lines)


def test_code_keeps_its_lines_and_what_is_in_it():
    code = "def f(x):\n\n    return '**' + x  # " + "long " * 30
    assert seen(f"```python\n{code}\n```\n# end", width=40) == f"```python\n{code}\n```\nend\n"
    assert "\x1b[35mdef\x1b[0m" in drawn(f"```python\n{code}\n```")
    assert "\x1b[35m" not in drawn(f"```python\n{code}\n```", has_color=False)


def test_a_string_over_several_lines_is_coloured_to_its_end():
    assert "\x1b[32mbody" in drawn('```python\nx = """\nbody\n"""\n```')


def test_a_fence_that_is_not_closed_loses_nothing():
    assert seen("```\na\nb") == "```\na\nb\n"


TABLE = "| Name | Number |\n|:--|--:|\n| **cat** | 1 |\n| dog with many more words than fit | 22 |\n\nafter"


def test_a_table_is_drawn_when_its_last_row_has_ended():
    stream = MarkdownStream(lambda: 30, has_color=True)
    assert stream.push(TABLE.partition("\n\n")[0] + "\n") == ""
    shown = without_sgr(stream.push("\nafter\n"))
    assert shown.splitlines()[0].split() == ["Name", "Number"] and shown.endswith("\n\nafter\n")
    assert all(width_of(line) < 30 for line in shown.splitlines())
    assert {"cat", "dog", "words", "than", "fit"} <= set(shown.split())


def test_a_table_of_too_many_columns_becomes_lines():
    head = "|" + "|".join(f"c{n}" for n in range(12)) + "|"
    assert "c7: 7\n" in seen(f"{head}\n{'|-' * 12}|\n|" + "|".join(map(str, range(12))) + "|", width=50)


def test_cells_beyond_those_of_the_header_are_shown_and_bars_in_code_part_none():
    drawn = seen("| a | b |\n|---|---|\n| one | two | three |\n| x | `p|q` |\n| y\\|z |\n")
    assert [line.split() for line in drawn.splitlines()[2:5]] == [["one", "two", "three"], ["x", "p|q"], ["y|z"]]


def test_lines_with_bars_that_are_no_table_are_text():
    assert seen("| not a table\n| at all") == "| not a table\n| at all\n"


def test_without_colour_code_in_a_line_keeps_its_ticks():
    assert drawn("run `x`", has_color=False) == "run `x`\n"


TEXT = ["word ", "many words in a row ", "x" * 70, "字字字", "🎉 ", "\n", "\n\n", "    ", "<", "\\", "(", ")", "!"]
MARKS = ["**", "*", "_", "`", "``", "~~", "[", "](u)", "# ", "- ", "1. ", "> ", "```py\n", "```\n", "---\n"]
FRAGMENTS = st.sampled_from([*TEXT, *MARKS, "| a | b |\n", "|---|---|\n"])


@given(st.lists(FRAGMENTS, max_size=40), st.integers(1, 9), st.sampled_from([50, 80, 200]))
def test_no_letter_is_lost_and_no_line_but_code_is_too_long(parts, step, width):
    source = "".join(parts)
    text = seen(source, width=width, step=step)
    letters = [sorted(re.findall(r"\w", each.replace("_", ""))) for each in (source, text)]
    assert letters[0] == letters[1]
    if "```" not in source and "~~~" not in source:
        assert all(width_of(line) < width for line in text.splitlines())


@pytest.mark.parametrize("unit", ["x", "*", "[", "字", "| ", "```", "a*b_"])
def test_a_line_without_an_end_is_not_kept(unit):
    stream = MarkdownStream(lambda: 80, has_color=True)
    shown = held = 0
    for _ in range(20_000 // len(unit) // 10):
        shown += len(stream.push(unit * 10))
        held = max(held, len(stream._held))
    assert held <= MOST_HELD + 10 * len(unit) and shown > 0


@pytest.mark.parametrize("unit", ["x", "字", "word ", "**b** ", "`c", "[a](b) "])
def test_a_line_of_a_hundred_thousand_characters_is_drawn_whole(unit):
    source = unit * (100_000 // len(unit))
    text = seen(source, width=60, step=997)
    for letter in re.findall(r"\w", unit):
        assert text.count(letter) == source.count(letter)
    assert max(map(width_of, text.split("\n"))) < 60


def test_words_without_markdown_fit_too():
    stream = WordStream(lambda: 20)
    text = "**some** words that are wrapped\nand lines"
    shown = "".join(map(stream.push, text)) + stream.finish()
    assert shown == "**some** words that\nare wrapped\nand lines\n"
