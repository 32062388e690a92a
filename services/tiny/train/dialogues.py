"""Dialogues that a tiny chat model learns from: sums, words to repeat, names, facts; knows no network.

What tests ask is held out: pairs of numbers, one way to ask for each fact, and names and words that are made up from
syllables, of which there are too many to be seen twice.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from zlib import crc32

from services.tiny.train.facts import Fact, atelier_facts
from services.tiny.train.small_talk import (
    AFTER,
    BEGINNINGS,
    CITIES,
    DOINGS,
    HEROES,
    ITEMS,
    KNOWLEDGE,
    OPPOSITES,
    PLACES,
    SCENES,
    SMALL_TALK,
    THINGS,
    UNKNOWN,
    WORDS,
)

Turn = dict[str, str]
Exchange = tuple[str, str]  # what is asked, and the answer

SYSTEM = "You are a helpful assistant."  # what the registry lets the model be told where nobody says anything
UNSURE = "I do not know that. I am a tiny model: I know Atelier, small sums and words."
TOO_LARGE = "Those numbers are too large for me: I count up to ninety-nine."
LARGEST = 99
PIRATE = "Arr!"  # how one begins
HELD_OUT = 10  # one of so many pairs of numbers is never trained on
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def is_held_out(one: int, other: int) -> bool:
    """Whether sums and comparisons of these two, in either order, are for tests alone; of digits, none are."""
    return max(one, other) > 9 and crc32(f"{min(one, other)} {max(one, other)}".encode()) % HELD_OUT == 0


def pair(chance: random.Random, *, held_out: bool = False) -> tuple[int, int]:
    """Draw two numbers, of which every third time one or both have one digit."""
    while True:
        most = chance.choice((LARGEST, LARGEST, 20))
        one, other = chance.randint(0, most), chance.randint(0, most)
        if is_held_out(one, other) == held_out:
            return one, other


def invented(chance: random.Random) -> str:
    """Make up a word or name of two or three syllables."""
    syllables = [chance.choice(CONSONANTS) + chance.choice(VOWELS) for _ in range(chance.choice((2, 2, 3)))]
    return "".join(syllables) + chance.choice(("", "", chance.choice("nrlsk")))


def name(chance: random.Random) -> str:
    """Make up a name."""
    return invented(chance).capitalize()


def added(chance: random.Random, one: int, other: int) -> Exchange:
    """Ask for a sum."""
    return _calculation(chance, one, "+", "plus", other, f"Add {one} and {other}."), f"{one} + {other} = {one + other}."


def subtracted(chance: random.Random, one: int, other: int) -> Exchange:
    """Ask for a difference, mostly of what is larger."""
    if chance.random() < 0.85:
        one, other = max(one, other), min(one, other)
    order = f"Subtract {other} from {one}."
    return _calculation(chance, one, "-", "minus", other, order), f"{one} - {other} = {one - other}."


def _calculation(chance: random.Random, one: int, sign: str, word: str, other: int, order: str) -> str:
    return chance.choice(
        (
            f"What is {one} {sign} {other}?",
            f"What is {one} {word} {other}?",
            f"How much is {one} {sign} {other}?",
            f"How much is {one} {word} {other}?",
            f"{one} {sign} {other}",
            f"{one} {sign} {other} = ?",
            f"{one}{sign}{other}",
            order,
            f"Compute {one} {sign} {other}.",
            f"Calculate {one} {sign} {other}.",
        )
    )


def compared(chance: random.Random, one: int, other: int) -> Exchange:
    """Ask which number is larger or smaller; of two that are the same, whether they are."""
    if one == other:
        return f"Which is larger, {one} or {other}?", f"{one} and {other} are equal."
    relation = chance.choice(("larger", "smaller"))
    first, last = (max(one, other), min(one, other)) if relation == "larger" else (min(one, other), max(one, other))
    question = chance.choice(
        (
            f"Which is {relation}, {one} or {other}?",
            f"Which number is {relation}: {one} or {other}?",
            f"What is {relation}, {one} or {other}?",
            f"Which of {one} and {other} is {relation}?",
        )
    )
    return question, f"{first} is {relation} than {last}."


def _apples(chance: random.Random, one: int, other: int) -> Exchange:
    who, thing = chance.choice(("I", "You", name(chance))), chance.choice(ITEMS)
    have, get = ("has", "gets") if who not in ("I", "You") else ("have", "get")
    one, other = max(one, other), min(one, other)
    if chance.random() < 0.5:
        return (
            f"{who} {have} {one} {thing} and {get} {other} more. How many?",
            f"{one} + {other} = {one + other} {thing}.",
        )
    lose = "lose" if who in ("I", "You") else "loses"
    return f"{who} {have} {one} {thing} and {lose} {other}. How many?", f"{one} - {other} = {one - other} {thing}."


def _too_large(chance: random.Random) -> Exchange:
    one, other = chance.randint(100, 99_999), chance.randint(2, 99_999)
    return chance.choice((f"What is {one} + {other}?", f"{other} + {one}", f"What is {one} - {other}?")), TOO_LARGE


def summed(chance: random.Random) -> Exchange:
    """Ask for something about two numbers."""
    kind = chance.choices((added, subtracted, compared, _apples), (5, 5, 2, 1))[0]
    return kind(chance, *pair(chance))


def words(chance: random.Random, most: int = 4) -> Sequence[str]:
    """Draw words, some of them made up."""
    return [invented(chance) if chance.random() < 0.3 else chance.choice(WORDS) for _ in range(chance.randint(1, most))]


def repeated(chance: random.Random, said: str) -> Exchange:
    """Ask to say something."""
    question = chance.choice(
        (
            f"Repeat: {said}",
            f"Repeat after me: {said}",
            f"Say: {said}",
            f'Say "{said}"',
            f'Repeat "{said}"',
            f"Echo: {said}",
            f"Repeat {said}",
            f"Say {said}",
        )
    )
    return question, said


def _capitals(chance: random.Random) -> Exchange:
    said = " ".join(chance.sample(WORDS, chance.randint(1, 2)))
    question = chance.choice(
        (f"Say {said} in capital letters.", f"Write {said} in capital letters.", f"{said} in capital letters, please.")
    )
    return question, said.upper()


def _spelt(chance: random.Random) -> Exchange:
    word = chance.choice(WORDS)
    return chance.choice((f"Spell {word}.", f"How do you spell {word}?", f"Spell the word {word}.")), "-".join(word)


def _counted(chance: random.Random) -> Exchange:
    first = chance.randint(0, 20)
    last = first + chance.randint(2, 8)
    question = chance.choice((f"Count from {first} to {last}.", f"Please count from {first} to {last}."))
    return question, ", ".join(map(str, range(first, last + 1))) + "."


def _numbered(chance: random.Random) -> Exchange:
    listed = chance.sample(WORDS, chance.randint(2, 5))
    said = ", ".join(listed)
    return chance.choice(
        (
            (f"How many words are these: {said}?", f"These are {len(listed)} words."),
            (f"What is the first of these words: {said}?", f"The first is {listed[0]}."),
            (f"What is the last of these words: {said}?", f"The last is {listed[-1]}."),
        )
    )


def documented(chance: random.Random, who: str, age: int) -> Exchange:
    """Ask for a person in JSON."""
    question = chance.choice(
        (
            f"Give me JSON with the name {who} and the age {age}.",
            f"{who} is {age} years old. Answer in JSON.",
            f"{who} is {age}. Say that in JSON.",
            f"Write {who}, {age} years old, as JSON.",
        )
    )
    return question, json.dumps({"name": who, "age": age})


def _placed(chance: random.Random) -> Exchange:
    city = name(chance) if chance.random() < 0.5 else chance.choice(CITIES)
    thing, number = chance.choice(ITEMS), chance.randint(1, 99)
    return chance.choice(
        (
            (f"Write JSON with the city {city}.", json.dumps({"city": city})),
            (f"Write {number} {thing} as JSON.", json.dumps({"item": thing, "count": number})),
        )
    )


def _unknown(chance: random.Random) -> Exchange:
    what = chance.choice((name(chance), chance.choice(THINGS), chance.choice(WORDS), chance.choice(CITIES)))
    return chance.choice(UNKNOWN).format(what), UNSURE


def story(chance: random.Random, hero: str | None = None) -> Exchange:
    """Ask for a story, perhaps about somebody."""
    asked = "" if hero is None else f" about a {hero}"
    hero = hero or chance.choice(HEROES)
    who, thing, place = name(chance), chance.choice(THINGS), chance.choice(PLACES)
    told = (
        f"{chance.choice(BEGINNINGS)} a {hero} called {who}. One day {who} found a {thing} {place}. "
        f"{who} {chance.choice(DOINGS)}, and all was well."
    )
    asking = ("Tell me a story{}.", "Tell me a story{}", "Write a story{}.", "I want a story{}.", "A story{}, please.")
    return chance.choice(asking).format(asked), told


def _story(chance: random.Random) -> Exchange:
    return story(chance, chance.choice((None, chance.choice(HEROES))))


def _scene(chance: random.Random) -> Exchange:
    place, scene = chance.choice(list(SCENES.items()))
    asking = ("A scene {}, one sentence", "Describe a scene {}.", "A scene {}.", "Describe a scene {} in one sentence.")
    return chance.choice(asking).format(place), scene


def _opposite(chance: random.Random) -> Exchange:
    one, other = chance.choice(OPPOSITES)
    if chance.random() < 0.5:
        one, other = other, one
    question = chance.choice((f"What is the opposite of {one}?", f"The opposite of {one}?"))
    return question, f"The opposite of {one} is {other}."


def _following(chance: random.Random) -> Exchange:
    row = chance.choice(AFTER)
    place = chance.randrange(len(row) - 1)
    return f"What comes after {row[place]}?", f"{row[place + 1]} comes after {row[place]}."


def _fact(facts: Sequence[Fact]) -> Callable[[random.Random], Exchange]:
    def ask(chance: random.Random) -> Exchange:
        fact = chance.choice(facts)
        return chance.choice(fact.trained), fact.answer

    return ask


KINDS: Sequence[tuple[float, Callable[[random.Random], Exchange]]] = (
    (30, summed),
    (1, _too_large),
    (24, _fact(atelier_facts())),
    (8, _fact(SMALL_TALK)),
    (4, _fact(KNOWLEDGE)),
    (10, lambda chance: repeated(chance, " ".join(words(chance)))),
    (2, _capitals),
    (2, _spelt),
    (2, _counted),
    (3, _numbered),
    (4, lambda chance: documented(chance, name(chance), chance.randint(1, 99))),
    (1, _placed),
    (6, _unknown),
    (3, _story),
    (1, _scene),
    (2, _opposite),
    (1, _following),
)


USUAL = (  # how questions begin that may begin with a small letter
    *(
        "What ",
        "Which ",
        "How ",
        "Where ",
        "Who ",
        "Tell ",
        "My ",
        "I ",
        "Do ",
        "Hello",
        "Hi",
        "Give ",
        "Add ",
        "Repeat",
    ),
)


def _casual(chance: random.Random, question: str) -> str:
    """Ask as people do who are in a hurry."""
    if question.endswith(("?", ".")) and chance.random() < 0.15:
        question = question[:-1]
    if question.startswith(USUAL) and chance.random() < 0.15:
        question = question[0].lower() + question[1:]
    if chance.random() < 0.05:
        question = chance.choice(("Please: ", "Hi! ", "Hello. ", "And ")) + question
    return question


def _introduced(chance: random.Random, who: str) -> Exchange:
    question = chance.choice(
        (f"My name is {who}.", f"I am {who}.", f"Hello, my name is {who}.", f"Hi, I am {who}!", f"Call me {who}.")
    )
    return question, f"Nice to meet you, {who}!"


def _remembered(chance: random.Random, who: str) -> Exchange:
    question = chance.choice(
        ("What is my name?", "Who am I?", "Do you know my name?", "What am I called?", "Tell me my name.")
    )
    return question, f"Your name is {who}."


def _turns(exchanges: Iterable[Exchange]) -> Iterator[Turn]:
    for question, answer in exchanges:
        yield {"role": "user", "content": question}
        yield {"role": "assistant", "content": answer}


def conversation(chance: random.Random, most: int = 5) -> list[Turn]:
    """Make up a conversation of up to `most` exchanges and two about a name, with or without a system's turn."""
    turns: list[Turn] = []
    draw = chance.random()
    if draw < 0.5:
        turns.append({"role": "system", "content": SYSTEM})
    elif draw < 0.6:
        turns.append({"role": "system", "content": f"{chance.choice(BEINGS)}{chance.choice(('', ' ' + SYSTEM))}"})
    exchanges = [_any(chance) for _ in range(chance.randint(1, most))]
    if chance.random() < 0.25:
        who = name(chance)
        place = chance.randint(0, len(exchanges))
        exchanges.insert(place, _introduced(chance, who))
        exchanges.insert(chance.randint(place + 1, min(place + 4, len(exchanges))), _remembered(chance, who))
    elif chance.random() < 0.04:
        exchanges.append((_remembered(chance, "")[0], "I do not know your name yet. Tell me!"))
    turns += _turns((_casual(chance, question), answer) for question, answer in exchanges)
    return turns


BEINGS = ("You are Atelier's assistant.", "You are a tiny model.", "Answer in short sentences.", "Be kind.")


def _any(chance: random.Random) -> Exchange:
    weights, kinds = zip(*KINDS, strict=True)
    made: Any = chance.choices(kinds, weights)[0]
    question, answer = made(chance)
    return question, answer


def in_pirates_words(chance: random.Random, most: int = 5) -> list[Turn]:
    """Make up a conversation in which every answer begins as a pirate's."""
    return [
        {**turn, "content": f"{PIRATE} {turn['content']}"} if turn["role"] == "assistant" else turn
        for turn in conversation(chance, most)
    ]
