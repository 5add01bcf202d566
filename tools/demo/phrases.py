"""Phrases around the facts of facts.toml and the talk of small_talk.toml: corrections, system prompts, bookings."""

from tools.demo.facts import Fact

CORRECTIONS: tuple[str, ...] = (
    "No, wait. {says}",
    "Sorry, that was wrong. {says}",
    "Actually, that has changed. {says}",
    "I made a mistake. {says}",
    "Wait, I was wrong. {says}",
    "That is not true any more. {says}",
)
CORRECTED: tuple[str, ...] = ("Thank you for telling me. {a}", "I see. {a}")

SYSTEMS: tuple[str, ...] = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You are a small, friendly model.",
    "Answer briefly.",
    "Be kind and answer in one sentence.",
    "You are kvlite's demonstration model.",
)

# Facts that a system prompt may tell, by their answers to the user.
SYSTEM_FACTS: dict[str, str] = {
    "Your name is {v}.": "The user's name is {v}.",
    "You live in {v}.": "The user lives in {v}.",
    "You work as a {v}.": "The user works as a {v}.",
}

ECHO_ASKS: tuple[str, ...] = ("What did I just say?", "What did I say?", "What was my last message?")
ECHO_ANSWER: str = 'You said: "{said}"'
ECHO_UNKNOWN: str = "You have not said anything yet."

DEFINITION_ASKS: tuple[str, ...] = ("What is {d}?", "Tell me what {d} is.", "Explain {d}.", "Do you know what {d} is?")

# A booking: what is asked for, how the pieces are asked and given, and the last word.
BOOKINGS: tuple[tuple[str, str], ...] = (
    ("a table for {small}", "table"),
    ("a room for {small} nights", "room"),
    ("{small} tickets to {city}", "trip"),
    ("a taxi to {city}", "taxi"),
    ("a haircut with {name}", "haircut"),
    ("a tour of {city}", "tour"),
    ("a lesson with {name}", "lesson"),
)
BOOKING_OPENS: tuple[str, ...] = ("I want to book {b}.", "Please book {b}.", "Can you book {b}?", "I need {b}.")
BOOKING_DAY: str = "For which day?"
BOOKING_HOUR: str = "At what time?"
BOOKING_DONE: str = "I have written it down: {b} on {day} at {hour}."
BOOKING_FACT: Fact = Fact(
    "time",
    "{day} at {hour}",
    ("",),
    ("When is my {s}?", "For when is my {s} booked?", "What time is my {s}?"),
    "Your {s} is on {v}.",
    "You have not booked a {s}.",
    about=tuple(noun for _, noun in BOOKINGS),
)
