"""The moves of a dialogue that tell facts, correct them, and ask for them again from near and far."""

from tools.demo.facts import ACKS, NAME_OF, Fact
from tools.demo.phrases import (
    BOOKING_DAY,
    BOOKING_DONE,
    BOOKING_FACT,
    BOOKING_HOUR,
    BOOKING_OPENS,
    BOOKINGS,
    CORRECTED,
    CORRECTIONS,
)
from tools.demo.turns import Recall
from tools.demo.vocabulary import draw
from tools.demo.writer import Told, Writer

_LONGEST_LIST = 5
_OLDEST_SHARE = 0.35  # questions for the fact said longest ago; the others are for any fact
_BY_NAME_SHARE = 0.4  # questions that name the person, of those about a person told by name


def _new(writer: Writer, fact: Fact | None = None) -> Told:
    fact = fact or writer.rng.choice(writer.facts)
    return Told(fact, writer.one_of(fact.about), writer.fill(fact.value), len(writer.turns))


def tell(writer: Writer) -> None:
    """A fact that has not been told yet; a correction if it has."""
    told = _new(writer)
    if told.key in writer.told:
        return correct(writer)
    writer.told[told.key] = told
    acks = writer.one_of(told.fact.acks)
    return writer.say(_said(writer, told), writer.fill(acks, {"a": told.answer, "v": told.value}))


def tell_two(writer: Writer) -> None:
    """Two facts in one message."""
    first, second = _new(writer), _new(writer)
    if first.key == second.key or first.key in writer.told or second.key in writer.told:
        return tell(writer)
    return _tell_both(writer, first, second)


def tell_by_name(writer: Writer) -> None:
    """A fact about a person, said of the person's name; with the name, if that was not told."""
    told = _new(writer, writer.rng.choice([fact for fact in writer.facts if fact.named_says]))
    if told.key in writer.told:
        return tell(writer)
    person = writer.told.get((NAME_OF.answer, told.about))
    if person is None:
        person = Told(NAME_OF, told.about, writer.fill(NAME_OF.value), len(writer.turns))
        told.name = person.value
        return _tell_both(writer, person, told)
    told.name = person.value
    writer.told[told.key] = told
    return writer.say(_said(writer, told), writer.fill(writer.one_of(told.fact.acks), {"a": told.answer}))


def _said(writer: Writer, told: Told) -> str:
    return writer.fill(writer.user_line(told.says), told.words)


def _tell_both(writer: Writer, first: Told, second: Told) -> None:
    writer.told |= {first.key: first, second.key: second}
    user = " ".join(writer.fill(writer.one_of(told.says), told.words) for told in (first, second))
    writer.say(user, writer.fill(writer.one_of(ACKS), {"a": f"{first.answer} {second.answer}"}))


def correct(writer: Writer) -> None:
    """A new value for a fact told before; it wins from now on."""
    named = {told.about for told in writer.told.values() if told.name}
    fixed = [BOOKING_FACT.answer]
    choices = [
        told
        for told in writer.told.values()
        if told.fact.answer not in fixed and not (told.fact is NAME_OF and told.about in named)
    ]
    if not choices:
        return tell(writer) if not writer.told else ask(writer)
    told = writer.rng.choice(choices)
    if told.fact.adds and writer.rng.random() < 0.7:
        return _add(writer, told)
    told.value, told.said_in = writer.fill(told.fact.value), len(writer.turns)
    says = writer.fill(writer.one_of(told.says), told.words)
    user = writer.fill(writer.one_of(CORRECTIONS), {"says": says})
    return writer.say(user, writer.fill(writer.one_of(CORRECTED), {"a": told.answer}))


def _add(writer: Writer, told: Told) -> None:
    items = told.value.replace(" and ", ", ").split(", ")
    more = draw("food", writer.rng, writer.split)
    if len(items) == _LONGEST_LIST or more in items:
        return ask(writer)
    told.value, told.said_in = f"{', '.join(items)} and {more}", len(writer.turns)
    return writer.say(writer.fill(writer.user_line(told.fact.adds), {"more": more}), told.answer)


def ask(writer: Writer) -> None:
    """A question for a fact told before, the one said longest ago more often than any other."""
    if not writer.told:
        return tell(writer)
    everything = list(writer.told.values())
    if writer.rng.random() < _OLDEST_SHARE:
        told = min(everything, key=lambda fact: fact.said_in)
    else:
        told = writer.rng.choice(everything)
    value, said_in = told.value, told.said_in
    told.said_in = len(writer.turns)
    asks, answer, steps = told.fact.asks, told.answer, 1
    if told.name:
        if writer.rng.random() < _BY_NAME_SHARE:
            asks = told.fact.named_asks
        else:
            person = writer.told[NAME_OF.answer, told.about]
            person.said_in = len(writer.turns)
            answer, steps = f"{person.answer} {answer}", 2
    recall = Recall(value, said_in, steps, told.fact.kind)
    return writer.say(writer.fill(writer.user_line(asks), told.words), answer, recall)


def ask_unknown(writer: Writer) -> None:
    """A question for a fact that nobody has told."""
    told = _new(writer)
    if told.key in writer.told:
        return ask(writer)
    words = {"s": told.about}
    return writer.say(writer.fill(writer.user_line(told.fact.asks), words), writer.fill(told.fact.unknown, words))


def book(writer: Writer) -> None:
    """A booking in three turns; its day and hour can be asked for later."""
    wish, noun = writer.rng.choice(BOOKINGS)
    wish = writer.fill(wish)
    day, hour = draw("day", writer.rng, writer.split), draw("hour", writer.rng, writer.split)
    writer.say(writer.fill(writer.user_line(BOOKING_OPENS), {"b": wish}), BOOKING_DAY)
    writer.say(writer.one_of([day, f"{day}.", f"On {day}.", f"On {day}, please."]), BOOKING_HOUR)
    told = Told(BOOKING_FACT, noun, f"{day} at {hour}", len(writer.turns))
    writer.told[told.key] = told
    done = writer.fill(BOOKING_DONE, {"b": wish, "day": day, "hour": hour})
    writer.say(writer.one_of([hour, f"At {hour}.", f"At {hour}, please."]), done)
