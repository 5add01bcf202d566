"""A row of the cache in a file: it goes on with the same tokens, and what does not fit or is damaged is noticed."""

import json
import stat
from dataclasses import replace

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from kvlite.llm.answer import AnswerSettings
from kvlite.llm.saved_row import Unusable, load_row, save_row
from tests.llm.talking import QUESTIONS, Talk, opened


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file of a chat in which tokens were evicted, its messages, and how it went on."""
    path = tmp_path_factory.mktemp("saved") / "a.kv.safetensors"
    with opened("64tok") as llm:
        talk = Talk(llm)
        for question in QUESTIONS:
            talk.ask(question)
        talk.memory.pin(3)
        messages = [*talk.messages]
        num_bytes = save_row(path, llm, talk.conversation, messages)
        kept = talk.shares
        went_on = [talk.ask("Where do I live?").text, talk.ask("And my name?").text]
        return path, messages, went_on, kept, num_bytes, llm.counts().budget_bytes


def resumed(llm, path, messages):
    talk = Talk(llm)
    load_row(path, llm, talk.conversation, messages)
    talk.messages = [*messages]
    return talk


@pytest.mark.parametrize("budget", ["64tok", "200tok"])
def test_it_goes_on_as_if_it_had_never_stopped(saved, budget):
    path, messages, went_on, kept, _, _ = saved
    with opened(budget) as llm:
        talk = resumed(llm, path, messages)
        assert talk.shares == kept and talk.memory.turns()[2].is_pinned
        first = talk.ask("Where do I live?")
        assert first.prompt_tokens < 30  # the new question alone was read
        if budget == "64tok":
            assert [first.text, talk.ask("And my name?").text] == went_on


def test_the_file_is_the_users_and_little_more_than_the_cache(saved):
    path, _, _, _, num_bytes, budget_bytes = saved
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert num_bytes == path.stat().st_size < budget_bytes + 8000


def test_a_file_cut_off_or_changed_anywhere_is_noticed_and_changes_nothing(saved, tmp_path):
    path, messages, *_ = saved
    data = path.read_bytes()
    torn = tmp_path / "torn.kv.safetensors"
    with opened("64tok") as llm:
        talk = Talk(llm)
        talk.ask("Hello")
        before = llm.counts()
        places = [0, 1, 7, 8, 100, len(data) // 3, len(data) // 2, len(data) - 1]
        wrong = [data[:place] for place in places]
        wrong += [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in places]
        wrong += [b"", b"nonsense", data + b"more"]
        for each in wrong:
            torn.write_bytes(each)
            with pytest.raises(Unusable):
                load_row(torn, llm, talk.conversation, messages)
        with pytest.raises(Unusable, match="not saved"):
            load_row(tmp_path / "none", llm, talk.conversation, messages)
        assert llm.counts() == before and talk.ask("Hello again").text


@pytest.mark.parametrize(
    ("budget", "policy", "why"),
    [("64tok", "window", "its policy was heavy-hitter"), ("40tok", "heavy-hitter", "another budget")],
)
def test_another_policy_or_a_smaller_budget_is_told(saved, budget, policy, why):
    path, messages, *_ = saved
    with opened(budget, policy) as llm, pytest.raises(Unusable, match=why):
        load_row(path, llm, Talk(llm).conversation, messages)


def test_another_conversation_is_told(saved):
    path, messages, *_ = saved
    with opened("64tok") as llm, pytest.raises(Unusable, match="the conversation is another"):
        load_row(path, llm, Talk(llm).conversation, messages[:-2])


@pytest.mark.parametrize(
    ("name", "why"), [("model", "it is of x"), ("weights", "its weights were x"), ("template", "template"),
                      ("slots", "its slots hold x"), ("format", "another kvlite")],
)  # fmt: skip
def test_what_was_saved_of_something_else_is_told(saved, tmp_path, name, why):
    path, messages, *_ = saved
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["kvlite"]) | {name: "x"}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "other", {"kvlite": json.dumps(facts)})
    with opened("64tok") as llm, pytest.raises(Unusable, match=why):
        load_row(tmp_path / "other", llm, Talk(llm).conversation, messages)


def test_a_row_that_holds_something_else_is_not_saved(tmp_path):
    path = tmp_path / "a.kv.safetensors"
    with opened("64tok") as llm:
        talk = Talk(llm)
        talk.ask("Hello")
        assert save_row(path, llm, talk.conversation, talk.messages) is not None
        assert save_row(path, llm, talk.conversation, talk.messages[:-1]) is None
        assert not path.exists()


def test_what_was_cut_short_goes_on_where_it_stopped():
    with opened("200tok") as llm:
        whole, cut = Talk(llm), Talk(llm)
        expected = whole.ask(QUESTIONS[1]).text
        cut.conversation.forget()
        cut.messages = [{"role": "user", "content": QUESTIONS[1]}]
        first = [*cut.conversation.ask(cut.messages, AnswerSettings(max_tokens=5))][-1]
        cut.messages.append({"role": "assistant", "content": first.text})
        more = [*cut.conversation.go_on(cut.messages, AnswerSettings(max_tokens=7))][-1]
        assert first.text + more.text == expected and len(first.completion.ids) == 5
        cut.messages[-1]["content"] += more.text
        assert cut.conversation.holds(cut.messages)


def test_what_was_repeated_for_the_policy_is_not_repeated_again(tmp_path):
    path = tmp_path / "a.kv.safetensors"
    with opened("64tok", "replay") as llm:
        talk = Talk(llm)
        for question in QUESTIONS:
            talk.ask(question)
        save_row(path, llm, talk.conversation, talk.messages)
        echoed = llm.engine.rows[0].echoed
    with opened("64tok", "replay") as llm:
        talk = resumed(llm, path, talk.messages)
        assert llm.engine.rows[0].echoed == echoed > 0


def test_an_adapter_that_is_another_or_new_is_told(saved, tmp_path):
    path, messages, *_ = saved
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text(name)
    with opened("64tok") as llm:
        spec = llm.model.spec
        with_adapter = replace(spec, options=replace(spec.options, adapter=str(tmp_path)))
        llm._model = replace(llm.model, spec=with_adapter)
        with pytest.raises(Unusable, match="adapter"):
            load_row(path, llm, Talk(llm).conversation, messages)


@pytest.mark.parametrize("name", ["row", "starts", "last", "digest"])
def test_facts_that_were_changed_or_lost_are_noticed(saved, tmp_path, name):
    path, messages, *_ = saved
    torn = tmp_path / "torn.kv.safetensors"
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["kvlite"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no mapping
    changed = {"row": facts["row"] | {"seen": facts["row"]["seen"] + 1}, "starts": [0]}
    changed = {key: held for key, held in changed.items() if key == name}
    facts = {key: changed.get(key, held) for key, held in facts.items() if key != name or key in changed}
    save_file(tensors, torn, {"kvlite": json.dumps(facts)})
    with opened("64tok") as llm, pytest.raises(Unusable, match="damaged"):
        load_row(torn, llm, Talk(llm).conversation, messages)
