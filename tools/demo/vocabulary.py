"""The words the dialogues are filled with, split into those trained on and those held out.

A held-out word is never used while training, so a model that says it back has copied it, not memorised it.
"""

import random
import zlib
from collections.abc import Callable
from functools import cache
from typing import Literal

Split = Literal["train", "held-out"]

_INVENTED_SHARE = 0.5


def held_out(word: str) -> bool:
    """True for one word in eight, by its checksum."""
    return zlib.crc32(word.encode()) % 8 == 0


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAMES = _words("""
    Aaron Abel Ada Adam Agnes Alan Albert Alice Amanda Amber Amy Andrea Andrew Angela Anna Anthony Arthur
    Audrey Barbara Beatrice Ben Bella Boris Brian Bruno Carla Carlos Caroline Cecilia Charles Chloe Chris
    Clara Claire Colin Connor Daisy Daniel David Dennis Diana Dora Dorothy Edgar Edith Edward Elena Elias
    Elizabeth Ella Emil Emily Emma Eric Erik Eva Felix Fiona Flora Frank Freya George Grace Greta Gustav
    Hannah Harold Harry Hector Heidi Helen Henry Hugo Ida Igor Irene Iris Isaac Ivan Jack James Jane Jasper
    Jenny Joan John Jonas Joseph Julia Karen Karl Kate Kevin Lara Laura Leo Leon Liam Lily Linda Lisa Louis
    Lucas Lucy Luna Maria Mark Martha Martin Mary Matthew Max Maya Mia Michael Mila Mira Nadia Nathan Nina
    Noah Nora Oliver Olivia Oscar Otto Paul Paula Peter Philip Rachel Ralph Rita Robert Rosa Rose Ruth Sally
    Samuel Sara Sarah Simon Sofia Stella Stephen Susan Theo Thomas Tim Tina Tom Ursula Vera Victor Viola
    Walter Wendy William Yara Zoe
""")

_CITIES = _words("""
    Amsterdam Athens Barcelona Berlin Bergen Boston Bristol Brussels Budapest Cairo Chicago Copenhagen Cork
    Dallas Delhi Denver Dover Dublin Edinburgh Florence Geneva Genoa Glasgow Hamburg Havana Helsinki Istanbul
    Kyoto Lagos Leeds Lima Lisbon London Lyon Madrid Malaga Manchester Milan Montreal Moscow Munich Nairobi
    Naples Nice Osaka Oslo Oxford Paris Porto Prague Quebec Riga Rome Salzburg Seattle Seoul Seville Sofia
    Stockholm Sydney Tokyo Toronto Turin Venice Verona Vienna Warsaw York Zurich
""")

_COLOURS = _words("""
    red blue green yellow orange purple pink brown black white grey gold silver violet turquoise crimson
    scarlet teal indigo ivory beige olive maroon lavender amber coral lilac mint navy bronze
""")

_DRINKS = _words("""
    tea coffee milk water juice lemonade cocoa cider soda espresso beer wine cola buttermilk tonic punch
    smoothie lassi matcha syrup
""")

_FOODS = _words("""
    pizza pasta soup rice bread cheese salad curry pancakes noodles apples bananas cherries grapes lemons
    mangoes peaches pears plums strawberries potatoes carrots beans tomatoes mushrooms onions dumplings sushi
    waffles porridge honey chocolate cake cookies yoghurt eggs fish chicken olives walnuts butter sugar pepper
    salt garlic spinach melons figs
""")

_JOBS = _words("""
    teacher doctor nurse farmer baker painter writer singer driver pilot gardener carpenter plumber cook
    waiter lawyer judge dentist student librarian engineer builder tailor butcher fisherman sailor soldier
    actor dancer musician designer scientist programmer translator photographer mechanic electrician clerk
    manager postman
""")

_HOBBIES = _words("""
    reading swimming running cycling painting dancing singing cooking baking gardening fishing hiking skiing
    skating sailing climbing knitting sewing chess football tennis basketball golf drawing writing photography
    yoga rowing surfing camping juggling pottery
""")

_ANIMALS = _words("""
    cat dog rabbit horse cow sheep goat pig hen duck goose mouse hamster parrot turtle fish snake frog fox
    bear wolf lion tiger elephant monkey owl eagle squirrel hedgehog deer donkey camel penguin seal whale
    dolphin otter badger lizard swan
""")

_THINGS = _words("""
    car bike house boat door coat hat bag umbrella kitchen bedroom bicycle chair table sofa lamp scarf jacket
    cup guitar phone tent garden dress shirt bottle notebook suitcase
""")

_PLACES = _words("""
    garden kitchen library park museum station market forest river beach school theatre office cellar attic
    drawer cupboard garage basket box bakery church castle bridge harbour hotel hospital cinema shop tower
    village
""")

_PLAIN = _words("""
    apple river stone cloud window paper candle mirror bottle pencil bridge winter summer flower mountain
    island ocean button ladder hammer needle ribbon basket blanket pillow carpet curtain engine rocket planet
    shadow thunder feather marble copper velvet lantern compass anchor saddle pocket ticket letter number
    puzzle riddle story music drum whistle bell trumpet violin piano sunset morning evening midnight spring
    autumn storm rain snow wind sand dust smoke fire earth metal glass wood cotton leather silk plate spoon
    fork knife kettle oven garden fence gate path road street corner square
""")

_DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_MONTHS = _words("January February March April May June July August September October November December")
_HOURS = _words("one two three four five six seven eight nine ten eleven twelve")
_SMALL = _words("two three four five six seven eight")

# Parts of invented words: an onset, a vowel and a coda make a syllable, thousands in all.
_ONSETS = ("", *_words("b bl br c ch cl cr d dr f fl fr g gl gr h j k kl l m n p pl pr qu r s sh sk sl sm sn sp st str"
                       " sw t th tr v w y z"))  # fmt: skip
_VOWELS = _words("a a e e i i o o u ai ea ee ia ie io oa oo ou y")
_CODAS = ("", "", "", *_words("b ck d g k l ll m n nd ng nt p r rd rt s ss st t th x z"))

# Short words that invented words begin with. They are tokens of their own, and a model that has never seen "or" begin
# anything cannot copy "orange".
_BEGINNINGS = _words("""
    a act add all am an and any app are arm as ask at be bed big bit book boo but buy by call can car cat con
    cost crim cup day did do dog don down ear eat en end eye far fat for free fun gar get go good had hand has
    hat he her here hi his hold home hot how ill in is it job key kind lamp last let li like list lit live lo
    long low man map mar may me meet men met mo mon more most mu must my name new no not now of off old on one
    or our out own pain pan par part past pay pen per pi pin plan play pri put read ready red rest ri right room
    rose run sad said sail sand say sea see sell sent set she shop si sing sit six so some son soon sound star
    stop sun sure talk tar tea tell ten than that the then there thin this time to token too top tow trip true
    turn two un under up us use van ver very wait wal walk was wat way we well went were what where white who
    wild will win with word work wrong yes you
""")
_ENDINGS = _words("ange cher dow er ery est ful ge ian ice ing ion ish ist ity ket land le less ley ly man mer mon ness"
                  " ney ory ous ow per rel sh ship son ter ton tor ture ver wer y")  # fmt: skip
_BEGINNING_SHARE = 0.4  # of invented words


@cache
def _split(words: tuple[str, ...], split: Split) -> tuple[str, ...]:
    return tuple(word for word in words if held_out(word) == (split == "held-out"))


def _shared(*words: str) -> Callable[[random.Random, Split], str]:
    """Sets too small to be split, such as the days of the week."""
    return lambda rng, split: rng.choice(words)


def _drawn(draw: Callable[[random.Random], str]) -> Callable[[random.Random, Split], str]:
    def until_in_split(rng: random.Random, split: Split) -> str:
        while held_out(word := draw(rng)) != (split == "held-out"):
            pass
        return word

    return until_in_split


def _invented(rng: random.Random) -> str:
    if rng.random() < _BEGINNING_SHARE:
        middle = rng.choice(("", "", rng.choice(_VOWELS), rng.choice(_CODAS)))
        return rng.choice(_BEGINNINGS) + middle + rng.choice(_ENDINGS)
    syllables = rng.choice((1, 2, 2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))


def _listed(*words: str) -> Callable[[random.Random, Split], str]:
    """Words from a list; in training often an invented one, or the model would choose from the list it has seen."""

    def listed_or_invented(rng: random.Random, split: Split) -> str:
        if split == "train" and rng.random() < _INVENTED_SHARE:
            return _drawn(_invented)(rng, split)
        return rng.choice(_split(words, split))

    return listed_or_invented


def _name(rng: random.Random) -> str:
    return rng.choice(_NAMES) if rng.random() < 0.5 else _invented(rng).capitalize()


def _city(rng: random.Random) -> str:
    return rng.choice(_CITIES) if rng.random() < 0.6 else _invented(rng).capitalize()


def _word(rng: random.Random) -> str:
    return rng.choice(_PLAIN) if rng.random() < 0.6 else _invented(rng)


def _digits(rng: random.Random, counts: tuple[int, ...] = (3, 4, 4)) -> str:
    return "".join(rng.choice("0123456789") for _ in range(rng.choice(counts)))


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(_MONTHS)}"


def _clock(rng: random.Random) -> str:
    return f"{rng.randint(0, 23)}:{rng.randint(0, 11) * 5:02}"


def _price(rng: random.Random) -> str:
    return f"{rng.randint(1, 99)}.{rng.randint(0, 19) * 5:02}"


_WORDS: dict[str, Callable[[random.Random, Split], str]] = {
    "name": _drawn(_name),
    "city": _drawn(_city),
    "word": _drawn(_word),
    "code": _drawn(_digits),
    "phone": _drawn(lambda rng: _digits(rng, (6,))),
    "date": _drawn(_date),
    "clock": _drawn(_clock),
    "price": _drawn(_price),
    "number": _drawn(lambda rng: str(rng.randint(2, 99))),
    "colour": _listed(*_COLOURS),
    "drink": _listed(*_DRINKS),
    "food": _listed(*_FOODS),
    "job": _listed(*_JOBS),
    "hobby": _listed(*_HOBBIES),
    "animal": _listed(*_ANIMALS),
    "thing": _shared(*_THINGS),
    "place": _listed(*_PLACES),
    "day": _shared(*_DAYS),
    "month": _shared(*_MONTHS),
    "hour": _shared(*_HOURS),
    "small": _shared(*_SMALL),
}


def draw(kind: str, rng: random.Random, split: Split) -> str:
    """A word of a kind ("name", "colour", "code", ...) from one side of the split."""
    return _WORDS[kind](rng, split)
