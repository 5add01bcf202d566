"""The memory of a chat on the built-in model: told by turn, pinned, made smaller and larger in mid-conversation."""

import pytest

from kvlite.cache.cache import SlotCache
from kvlite.engine.request import Sampling
from kvlite.errors import BudgetTooSmall, CapacityError, UsageError
from kvlite.llm.answer import AnswerSettings
from kvlite.memory.plan import stages
from kvlite.text.messages import checked
from tests.llm.talking import QUESTIONS, Talk, opened


@pytest.fixture
def talk():
    with opened("200tok", profile="off") as llm:  # heads have as many slots, so shares can be told beforehand
        talk = Talk(llm)
        for question in QUESTIONS:
            talk.ask(question)
        yield talk


def test_every_token_belongs_to_a_turn_and_all_are_kept_while_there_is_room(talk):
    turns = talk.memory.turns()
    assert [turn.number for turn in turns] == [1, 2, 3] and [turn.share for turn in turns] == [1.0] * 3
    head = talk.conversation.turn_spans()[0][0]  # what the template writes before the first question
    assert head + sum(turn.tokens for turn in turns) == talk.llm.counts().tokens_seen
    assert all(set(turn.cells) == {1.0} for turn in turns)


def test_turns_fed_together_are_found_where_they_are(talk):
    before = [turn.tokens for turn in talk.memory.turns()]
    talk.conversation.forget()
    talk.ask("Hello")
    after = [turn.tokens for turn in talk.memory.turns()]
    # a turn that was fed with others begins at its question, one fed alone at the end of the answer before it
    assert len(after) == 4 and abs(after[1] - before[1]) <= 8 and abs(after[2] - before[2]) <= 8


def test_the_shares_of_the_turns_are_those_of_the_cache(talk):
    talk.memory.change("48tok")
    turns = talk.memory.turns()
    kept = talk.conversation.turn_spans()[0][0] + sum(turn.share * turn.tokens for turn in turns)
    assert kept == pytest.approx(48, abs=0.01) and 0 < turns[0].share < 1


def test_a_smaller_budget_keeps_what_was_foretold_inside_its_bytes(talk):
    foretold = talk.memory.change("48tok", dry=True)
    assert talk.shares == [1.0] * 3 and talk.llm.plan.slots == 200
    done = talk.memory.change("48tok")
    assert done.shares == foretold.shares == pytest.approx(talk.shares, abs=0.05)
    kv = talk.llm.counts()
    assert kv.live_bytes <= kv.reserved_bytes == talk.llm.engine.cache.num_bytes <= kv.budget_bytes
    assert kv.peak_bytes <= kv.budget_bytes and kv.tokens_kept == 48


def test_a_pinned_turn_stays_whole_and_an_unpinned_one_need_not(talk):
    talk.memory.pin(1)
    talk.memory.change("64tok")
    for _ in range(3):
        talk.ask("Tell me a joke")
    assert talk.shares[0] == 1.0 and talk.memory.turns()[0].is_pinned
    talk.memory.unpin(1)
    for _ in range(3):
        talk.ask("Tell me a joke")
    assert talk.shares[0] < 1.0


def test_a_pin_survives_going_back_and_being_read_again(talk):
    talk.memory.pin(1)
    talk.ask("Hello")
    del talk.messages[-2:]
    talk.ask("Hello again")
    assert talk.llm.engine.rows.pins(0) == (talk.conversation.turn_spans()[0],)
    talk.conversation.forget()
    talk.ask("Hello once more")
    assert talk.llm.engine.rows.pins(0) == (talk.conversation.turn_spans()[0],)
    del talk.messages[:]
    talk.ask("From the start")
    assert talk.llm.engine.rows.pins(0) == () and not talk.memory.turns()[0].is_pinned


def test_a_larger_budget_goes_on_with_the_same_tokens(talk):
    same = [talk.ask("Where do I live?").text, talk.ask("And my name?").text]
    with opened("130tok") as llm:
        other = Talk(llm)
        for question in QUESTIONS:
            other.ask(question)
        other.memory.change("200tok")
        assert [other.ask("Where do I live?").text, other.ask("And my name?").text] == same


def test_what_cannot_be_had_changes_nothing(talk):
    talk.memory.pin(1)
    before = talk.llm.engine.cache
    for budget, error in (("8tok", CapacityError), ("28tok", BudgetTooSmall), ("nonsense", UsageError)):
        with pytest.raises(error):
            talk.memory.change(budget)
    with pytest.raises(UsageError, match="did you mean"):
        talk.memory.change(policy="windou")
    assert talk.llm.engine.cache is before and talk.shares == [1.0] * 3


def test_an_allocation_that_fails_leaves_the_conversation_as_it_was(talk, monkeypatch):
    opens, calls = type(talk.llm.engine.rows)._open, []

    def failing(self, *plan):
        calls.append(plan)
        if len(calls) == 1:
            raise MemoryError
        opens(self, *plan)

    with monkeypatch.context() as patch:
        patch.setattr(type(talk.llm.engine.rows), "_open", failing)
        with pytest.raises(MemoryError):
            talk.memory.change("48tok")
    assert talk.shares == [1.0] * 3 and talk.ask("Where do I live?").text


def test_another_policy_goes_on_with_what_is_kept(talk):
    change = talk.memory.change(policy="window")
    assert change.shares == (1.0, 1.0, 1.0) and talk.llm.counts().policy == "window"
    change = talk.memory.change(policy="heavy-hitter")  # its statistic was not kept meanwhile
    assert change.shares is None and talk.memory.turns() == []
    talk.ask("Hello")
    assert len(talk.memory.turns()) == 4


@pytest.mark.parametrize("policy", ["window", "heavy-hitter", "keydiff", "tova", "pyramid"])
def test_every_policy_can_be_made_smaller(policy):
    with opened("200tok", policy) as llm:
        talk = Talk(llm)
        for question in QUESTIONS:
            talk.ask(question)
        change = talk.memory.change("48tok")
        talk.ask("Hello")
        assert change.shares is None or llm.counts().tokens_kept <= 49
        assert llm.counts().live_bytes <= llm.plan.budget_bytes


@pytest.mark.parametrize("sizes", [(24, 300, 48), (300, 25, 24, 26, 100)])
def test_the_bytes_stay_inside_whatever_budgets_follow_each_other(sizes):
    with opened("200tok") as llm:
        talk = Talk(llm)
        talk.ask(QUESTIONS[0])
        for size in sizes:
            talk.memory.change(f"{size}tok")
            talk.ask("Hello")
            kv = llm.counts()
            assert kv.live_bytes <= kv.budget_bytes and llm.engine.cache.num_bytes <= kv.budget_bytes
            assert kv.tokens_kept <= size


def test_without_eviction_a_full_cache_says_the_same(talk):
    found = talk.memory.check(talk.ask("Where do I live?"))
    assert found.same == found.tokens > 0 and found.first is None


def test_a_check_finds_what_was_forgotten(talk):
    talk.memory.change("24tok", "window")
    found = talk.memory.check(talk.ask("What is my name?"))
    assert found.tokens > found.same and found.said != found.instead


def test_a_sampled_answer_is_drawn_again_with_its_seed(talk):
    talk.messages.append({"role": "user", "content": "Tell me a joke"})
    events = [*talk.conversation.ask(talk.messages, AnswerSettings(Sampling(temperature=1.5, seed=5), max_tokens=12))]
    found = talk.memory.check(events[-1])
    assert found.same == found.tokens


def test_what_was_checked_before_is_answered_from_the_same_cache(talk):
    before = talk.llm.counts()
    answer = talk.conversation.last
    talk.memory.check(answer)
    assert talk.llm.counts() == before


def test_a_pin_counts_only_what_is_left_of_its_turn(talk):
    whole = talk.memory.turns()[0].tokens
    talk.memory.change("48tok")
    left = talk.memory.pin(1)
    assert 0 < left.share < 1
    size = f"{whole + 1}tok"  # less than all of the turn and a new token take
    talk.memory.change(size)
    before = talk.memory.turns()[0].share
    talk.ask("Hello")
    assert 0 < before == talk.memory.turns()[0].share
    with pytest.raises(BudgetTooSmall, match="pinned"):
        talk.memory.change(size, policy="tova")  # which has to read all of it again


def test_ctrl_c_while_a_row_moves_leaves_it_where_it_was(monkeypatch):
    with opened("100tok") as llm:
        talk = Talk(llm)
        talk.ask(QUESTIONS[0])
        before, restore, stops = llm.counts(), SlotCache.restore, [KeyboardInterrupt]

        def interrupted(self, row, copy):
            if stops:
                raise stops.pop()
            restore(self, row, copy)

        monkeypatch.setattr(SlotCache, "restore", interrupted)
        with pytest.raises(KeyboardInterrupt):
            talk.memory.change("200tok")
        assert llm.counts() == before and llm.engine.rows.said(0)


def test_a_budget_that_grows_keeps_what_each_head_holds():
    with opened("100tok", policy="replay") as llm:
        talk = Talk(llm)
        for question in QUESTIONS:
            talk.ask(question)
        talk.memory.change("60tok")
        before, kept = talk.shares, llm.counts().tokens_kept
        assert kept < llm.counts().tokens_seen
        for larger in ("100tok", "200tok", "1MB"):
            talk.memory.change(larger)
            assert (talk.shares, llm.counts().tokens_kept) == (before, kept), larger


def test_taking_a_turn_back_does_not_forget_the_peak(talk):
    peak = talk.llm.counts().peak_bytes
    talk.conversation.go_back(tuple(checked(talk.messages[:-2])))
    now = talk.llm.counts()
    assert 0 < now.live_bytes < peak == now.peak_bytes


def test_answers_count_all_that_was_evicted_when_slots_were_shared_out_anew():
    with opened("80tok") as llm:
        talk = Talk(llm)
        evicted = [talk.ask(question).completion.evicted for question in (*QUESTIONS, "Tell me a joke")]
        assert sum(evicted) == llm.counts().tokens_evicted > 0


def held_of_pins(llm):
    """The pinned tokens that each head holds besides the sinks, and the most it keeps."""
    held = {}
    for part in llm.engine.cache.parts:
        pos = part.slots.pos[0, :, : llm.engine.cache.live(0, part.num_slots)]
        pinned = sum(
            (pos >= max(start, llm.engine.rows.policy.sinks)) & (pos < end) for start, end in llm.engine.rows.pins(0)
        )
        for head, count in zip(part.heads.numbers, pinned.sum(-1).tolist(), strict=True):
            held[part.heads.layer, head] = count, part.group.protection.most_pinned
    return held


def test_heads_with_few_slots_keep_as_much_of_a_pin_as_they_have_room_for():
    with opened("200tok") as llm:  # by the profile some heads will have half of that
        talk = Talk(llm)
        for question in QUESTIONS:
            talk.ask(question)
        for number in (1, 2, 3):
            talk.memory.pin(number)
        keeping, heads = talk.memory.heads_with_room()
        assert 0 < keeping < heads
        before = held_of_pins(llm)
        while llm.engine.plan.then is not None:
            talk.ask("Tell me a joke")
        after = held_of_pins(llm)
        assert sum(held == before[head][0] for head, (held, _) in after.items()) == keeping
        assert all(held == before[head][0] or held == most for head, (held, most) in after.items())


def test_a_pin_of_a_turn_that_is_not_read_yet_can_be_let_go(talk):
    talk.memory.pin(1)
    talk.memory.pin(2)
    talk.conversation.forget()
    talk.memory.unpin(1)
    talk.ask("Hello")
    assert [turn.is_pinned for turn in talk.memory.turns()] == [False, True, False, False]


def test_only_what_is_there_can_be_pinned_or_checked(talk):
    for number in (0, 4):
        with pytest.raises(UsageError, match="no turn"):
            talk.memory.pin(number)
    with pytest.raises(UsageError, match="not pinned"):
        talk.memory.unpin(1)
    answer = talk.conversation.last
    talk.conversation.forget()
    with pytest.raises(UsageError, match="not in the cache"):
        talk.memory.check(answer)


def test_the_panel_names_budget_tokens_and_what_a_full_cache_takes(talk):
    told = dict(talk.memory.panel())
    assert told["tokens seen"] == f"{talk.llm.counts().tokens_seen}" and "a full cache" in told


def test_a_turn_that_was_let_go_is_not_pinned_by_going_back(talk):
    talk.memory.pin(1)
    talk.ask("Hello")
    talk.memory.unpin(1)
    del talk.messages[-2:]
    talk.ask("Hello again")
    assert talk.llm.engine.rows.pins(0) == () and not talk.memory.turns()[0].is_pinned


def test_a_check_counts_penalties_as_the_answer_did(talk):
    settings = AnswerSettings(
        max_tokens=48, sampling=Sampling(temperature=1.0, presence_penalty=2.0, frequency_penalty=2.0)
    )
    talk.messages.append({"role": "user", "content": "Say it again and again"})
    answer = [*talk.conversation.ask(talk.messages, settings)][-1]
    found = talk.memory.check(answer)
    assert found.same == found.tokens == len(answer.completion.ids)


def test_the_heads_keep_their_profile_under_another_budget():
    with opened("64tok") as llm:
        talk = Talk(llm)
        talk.ask(QUESTIONS[0])
        assert len({slots for heads in stages(llm.plan)[-1].head_slots for slots in heads}) > 1
        talk.memory.change("80tok")
        with opened("80tok") as other:
            assert llm.plan in other.engine.rows.plans
