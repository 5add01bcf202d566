"""What is said in the dialogues: facts with their questions, small talk, questions and answers, stories, bookings.

`{v}` stands for a fact's value, `{s}` for what it is about, other braces for a word of that kind (see words.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fact:
    """One kind of fact a user states: how it is said, corrected, asked back and answered."""

    value: str  # kinds of words, in braces
    says: tuple[str, ...]
    asks: tuple[str, ...]
    answer: str
    unknown: str  # the answer while nobody has said it
    about: tuple[str, ...] = ("",)
    acks: tuple[str, ...] = ("I will remember that. {a}", "All right. {a}")


_PEOPLE = (
    "sister",
    "brother",
    "mother",
    "father",
    "friend",
    "teacher",
    "neighbour",
    "boss",
    "son",
    "daughter",
    "cousin",
)
_PETS = ("dog", "cat", "horse", "rabbit", "parrot", "hamster")
_THINGS = ("car", "bike", "house", "boat", "door", "coat", "hat", "bag", "umbrella", "sofa", "kitchen")
_LOCKS = ("door", "gate", "safe", "bike lock", "office", "garage", "locker")
_EVENTS = ("exam", "meeting", "dentist appointment", "flight", "party", "concert", "interview", "piano lesson")
_OBJECTS = ("key", "book", "map", "passport", "phone", "letter", "ticket", "umbrella")
_GOODS = ("coat", "book", "lamp", "ticket", "chair", "bike", "cake", "hat")

FACTS: tuple[Fact, ...] = (
    Fact(
        "{name}",
        ("My name is {v}.", "I am {v}.", "I'm {v}.", "Call me {v}.", "Hi, I'm {v}.", "Hello, my name is {v}."),
        ("What is my name?", "What's my name?", "Do you remember my name?", "Who am I?", "Tell me my name."),
        "Your name is {v}.",
        "You have not told me your name yet.",
        acks=("Nice to meet you, {v}!", "Hello, {v}! How can I help you?"),
    ),
    Fact(
        "{name}",
        ("My {s} is called {v}.", "My {s}'s name is {v}.", "I have a {s} called {v}.", "My {s} {v} is here."),
        ("What is my {s}'s name?", "What is my {s} called?", "What's the name of my {s}?", "Who is my {s}?"),
        "Your {s} is called {v}.",
        "You have not told me the name of your {s}.",
        about=_PEOPLE + _PETS,
    ),
    Fact(
        "{colour}",
        (
            "My favourite colour is {v}.",
            "My favorite color is {v}.",
            "I like the colour {v} most.",
            "I love {v} most of all colours.",
        ),
        (
            "What is my favourite colour?",
            "What's my favorite color?",
            "Which colour do I like most?",
            "What colour do I like?",
        ),
        "Your favourite colour is {v}.",
        "You have not told me your favourite colour.",
    ),
    Fact(
        "{colour}",
        ("My {s} is {v}.", "I have a {v} {s}.", "I painted my {s} {v}."),
        ("What colour is my {s}?", "What is the colour of my {s}?", "Do you remember the colour of my {s}?"),
        "Your {s} is {v}.",
        "You have not told me the colour of your {s}.",
        about=_THINGS,
    ),
    Fact(
        "{city}",
        ("I live in {v}.", "I am from {v}.", "My home is in {v}.", "I come from {v}.", "My home town is {v}."),
        (
            "Where do I live?",
            "Where am I from?",
            "Which city do I live in?",
            "What city do I live in?",
            "Where is my home?",
        ),
        "You live in {v}.",
        "You have not told me where you live.",
    ),
    Fact(
        "{city}",
        ("My {s} lives in {v}.", "My {s} has moved to {v}.", "My {s} is in {v} now."),
        ("Where does my {s} live?", "Where is my {s}?", "In which city does my {s} live?"),
        "Your {s} lives in {v}.",
        "You have not told me where your {s} lives.",
        about=_PEOPLE,
    ),
    Fact(
        "{number}",
        ("My lucky number is {v}.", "My favourite number is {v}."),
        ("What is my lucky number?", "What's my favourite number?", "Which number do I like?"),
        "Your lucky number is {v}.",
        "You have not told me your lucky number.",
    ),
    Fact(
        "{number}",
        ("I am {v} years old.", "I'm {v}.", "My age is {v}."),
        ("How old am I?", "What is my age?", "Do you know how old I am?"),
        "You are {v} years old.",
        "You have not told me how old you are.",
    ),
    Fact(
        "{code}",
        ("The code of the {s} is {v}.", "The {s} code is {v}.", "{v} is the code of the {s}."),
        (
            "What is the code of the {s}?",
            "What's the {s} code?",
            "Tell me the code of the {s}.",
            "Which code opens the {s}?",
        ),
        "The code of the {s} is {v}.",
        "You have not told me the code of the {s}.",
        about=_LOCKS,
    ),
    Fact(
        "{drink}",
        ("My favourite drink is {v}.", "I like to drink {v}.", "I always drink {v}."),
        ("What is my favourite drink?", "What do I like to drink?", "What do I drink?"),
        "Your favourite drink is {v}.",
        "You have not told me your favourite drink.",
    ),
    Fact(
        "{food}",
        ("My favourite food is {v}.", "I like to eat {v}.", "I love eating {v}."),
        ("What is my favourite food?", "What do I like to eat?", "Which food do I like?"),
        "Your favourite food is {v}.",
        "You have not told me your favourite food.",
    ),
    Fact(
        "{job}",
        ("I work as a {v}.", "My job is {v}.", "I am a {v}.", "I'm a {v}."),
        ("What is my job?", "What do I do for work?", "What do I work as?", "What's my job?"),
        "You work as a {v}.",
        "You have not told me what your job is.",
    ),
    Fact(
        "{hobby}",
        ("My hobby is {v}.", "In my free time I like {v}.", "I enjoy {v}."),
        ("What is my hobby?", "What do I like to do?", "What do I enjoy?", "What do I do in my free time?"),
        "Your hobby is {v}.",
        "You have not told me your hobby.",
    ),
    Fact(
        "{day}",
        ("My {s} is on {v}.", "I have my {s} on {v}.", "On {v} I have my {s}."),
        ("When is my {s}?", "On which day is my {s}?", "What day is my {s}?"),
        "Your {s} is on {v}.",
        "You have not told me when your {s} is.",
        about=_EVENTS,
    ),
    Fact(
        "{month}",
        ("My birthday is in {v}.", "I was born in {v}."),
        ("When is my birthday?", "In which month is my birthday?", "What month was I born in?"),
        "Your birthday is in {v}.",
        "You have not told me when your birthday is.",
    ),
    Fact(
        "{place}",
        ("The {s} is in the {v}.", "I left the {s} in the {v}.", "I put my {s} in the {v}."),
        ("Where is the {s}?", "Where is my {s}?", "Where did I leave the {s}?", "Where did I put the {s}?"),
        "The {s} is in the {v}.",
        "You have not told me where the {s} is.",
        about=_OBJECTS,
    ),
    Fact(
        "{number}",
        ("The {s} costs {v} euros.", "I paid {v} euros for the {s}.", "The price of the {s} is {v} euros."),
        ("How much does the {s} cost?", "What is the price of the {s}?", "What does the {s} cost?"),
        "The {s} costs {v} euros.",
        "You have not told me the price of the {s}.",
        about=_GOODS,
    ),
    Fact(
        "{word}",
        ("The secret word is {v}.", "My secret word is {v}.", "The password is {v}.", "Remember the word {v}."),
        (
            "What is the secret word?",
            "What is my secret word?",
            "What is the password?",
            "Which word should you remember?",
        ),
        "The secret word is {v}.",
        "You have not told me a secret word.",
    ),
    Fact(
        "{food}, {food} and {food}",
        ("My shopping list is {v}.", "I need to buy {v}.", "Please put {v} on my list."),
        ("What is on my list?", "What do I need to buy?", "Read me my shopping list."),
        "Your list has {v}.",
        "Your list is empty.",
    ),
)

CORRECTIONS: tuple[str, ...] = (
    "No, wait. {says}",
    "Sorry, that was wrong. {says}",
    "Actually, that has changed. {says}",
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

DEFINITION_ASKS: tuple[str, ...] = ("What is {d}?", "Tell me what {d} is.", "Explain {d}.", "Do you know what {d} is?")

# A booking: what is asked for, how the pieces are asked and given, and the last word.
BOOKINGS: tuple[tuple[str, str], ...] = (
    ("a table for {small}", "table"),
    ("a room for {small} nights", "room"),
    ("{small} tickets to {city}", "trip"),
    ("a taxi to {city}", "taxi"),
)
BOOKING_OPENS: tuple[str, ...] = ("I want to book {b}.", "Please book {b}.", "Can you book {b}?", "I need {b}.")
BOOKING_DAY: str = "For which day?"
BOOKING_HOUR: str = "At what time?"
BOOKING_DONE: str = "I have written it down: {b} on {day} at {hour}."
BOOKING_FACT: Fact = Fact(
    "{day} at {hour}",
    ("",),
    ("When is my {s}?", "For when is my {s} booked?", "What time is my {s}?"),
    "Your {s} is on {v}.",
    "You have not booked a {s}.",
    about=tuple(noun for _, noun in BOOKINGS),
)
