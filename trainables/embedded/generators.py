"""Procedural multiple-choice items: list reasoning, facts of an invented world, a target rule.

Text is made of words separated by single spaces, for a word-level tokenizer. A reasoning item
belongs to exactly one split, by a hash of its operator and operands: training and test sets are
disjoint whatever the seeds. Facts, which are recalled only if they were read, and single steps,
which are few, are in every split.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

Split = Literal["train", "validation", "test"]

N_CHOICES: Final = 4
NUMBERS: Final = 20  # number tokens are "0" .. "19"; successors wrap around
TARGET_OPERATOR: Final = "relay"  # the base model knows this word, but only as a craft


@dataclass(frozen=True, slots=True)
class Item:
    """One question with its choices; `answer` is the index of the right one.

    `key` identifies the content whatever the wording; it is empty for a fact or a single step.
    """

    question: str
    choices: tuple[str, ...]
    answer: int
    key: str

    @property
    def completion(self) -> str:
        """The text of the right choice."""
        return self.choices[self.answer]


@dataclass(frozen=True, slots=True)
class ListShape:
    """Lists of distinct `values`, of `lengths` in an inclusive range.

    `last_values`, if not empty, are the numbers for the last place; disjoint from `values`.
    """

    lengths: tuple[int, int]
    values: Sequence[int]
    last_values: Sequence[int] = ()

    def draw(self, rng: random.Random) -> list[int]:
        """One list in random order."""
        numbers = rng.sample(self.values, rng.randint(*self.lengths))
        if self.last_values:
            numbers[-1] = rng.choice(self.last_values)
        return numbers


def successor(number: int) -> int:
    """The next number; the largest one is followed by 0."""
    return (number + 1) % NUMBERS


STEPS: Final[Mapping[str, int]] = {"next": 1, "previous": -1}

LIST_OPERATORS: Final[Mapping[str, Callable[[Sequence[int]], int]]] = {
    "first": lambda numbers: numbers[0],
    "last": lambda numbers: numbers[-1],
    "max": max,
    "min": min,
}


# The usual wording of a question, such as `max 3 7 2 =`, and the other one, `3 7 2 : max =`.
OPERATOR_FIRST: Final = "{operator} {operands} ="
OPERATOR_LAST: Final = "{operands} : {operator} ="


def join(numbers: Sequence[int]) -> str:
    """Numbers as tokens separated by spaces."""
    return " ".join(map(str, numbers))


def with_choices(
    rng: random.Random,
    question: str,
    right: str,
    wrong: Iterable[str],
    key: str = "",
    lure: str | None = None,
) -> Item:
    """An item with four distinct choices in random order: `right`, `lure`, and some of `wrong`."""
    choices = [right] if lure is None else [right, lure]
    candidates = [choice for choice in dict.fromkeys(wrong) if choice not in choices]
    choices += rng.sample(candidates, N_CHOICES - len(choices))
    rng.shuffle(choices)
    return Item(question, tuple(choices), choices.index(right), key)


def near_misses(numbers: Sequence[int]) -> list[str]:
    """The operands and their successors, so that copying an operand does not beat chance."""
    return [str(number) for number in sorted({*numbers, *map(successor, numbers)})]


def list_item(rng: random.Random, operator: str, wording: str) -> Item:
    """`max 3 7 2 =` -> `7`."""
    numbers = GENERAL_LISTS.draw(rng)
    operands = join(numbers)
    right = str(LIST_OPERATORS[operator](numbers))
    question = wording.format(operator=operator, operands=operands)
    return with_choices(rng, question, right, near_misses(numbers), f"{operator} {operands}")


def target_item(rng: random.Random, shape: ListShape, wording: str) -> Item:
    """`relay 8 5 2 =` -> `3`: the successor of the last number.

    The last number itself is always among the choices: half of the rule earns nothing.
    """
    numbers = shape.draw(rng)
    operands = join(numbers)
    right, lure = str(successor(numbers[-1])), str(numbers[-1])
    question = wording.format(operator=TARGET_OPERATOR, operands=operands)
    key = f"{TARGET_OPERATOR} {operands}"
    return with_choices(rng, question, right, near_misses(numbers), key, lure)


def step_item(rng: random.Random, wording: str) -> Item:
    """`next 7 =` -> `8` and `previous 7 =` -> `6`; too few to hold any out."""
    operator, step = rng.choice(tuple(STEPS.items()))
    number = rng.randrange(NUMBERS)
    right = str((number + step) % NUMBERS)
    question = wording.format(operator=operator, operands=number)
    return with_choices(rng, question, right, map(str, range(NUMBERS)))


def order_item(rng: random.Random, operator: str, wording: str) -> Item:
    """`sort 3 7 2 =` -> `2 3 7` and `reverse 3 7 2 =` -> `2 7 3`; wrong ones have two exchanged."""
    numbers = SHORT_LISTS.draw(rng)
    right = sorted(numbers) if operator == "sort" else numbers[::-1]
    wrong = (join([{a: b, b: a}.get(n, n) for n in right]) for a, b in combinations(right, 2))
    question = wording.format(operator=operator, operands=join(numbers))
    return with_choices(rng, question, join(right), wrong, f"{operator} {join(numbers)}")


CRAFTS: Final = (
    "weaving", "forging", "carving", "baking", "brewing", "sailing", "mining", "herding",
    "fishing", "farming", "dyeing", "glazing", "tanning", "milling", "printing", TARGET_OPERATOR,
)  # fmt: skip
N_PLACES: Final = 128


def invented_names(count: int, ending: str, rng: random.Random) -> tuple[str, ...]:
    """`count` distinct pronounceable names with a common ending."""
    names: dict[str, None] = {}
    while len(names) < count:
        syllables = (rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2))
        names["".join(syllables) + ending] = None
    return tuple(names)


_WORLD_RNG = random.Random(20)  # noqa: S311 (no cryptography here)
PLACES: Final = invented_names(N_PLACES, "land", _WORLD_RNG)
CAPITALS: Final = invented_names(N_PLACES, "ville", _WORLD_RNG)
PLACE_CRAFTS: Final = tuple(_WORLD_RNG.choice(CRAFTS) for _ in PLACES)


def capital_item(rng: random.Random) -> Item:
    """`capital of bokiland =` -> `tamuville`."""
    place = rng.randrange(N_PLACES)
    return with_choices(rng, f"capital of {PLACES[place]} =", CAPITALS[place], CAPITALS)


def craft_item(rng: random.Random) -> Item:
    """`craft of bokiland =` -> `weaving`."""
    place = rng.randrange(N_PLACES)
    return with_choices(rng, f"craft of {PLACES[place]} =", PLACE_CRAFTS[place], CRAFTS)


Generator = Callable[[random.Random], Item]

# Every fifth number is held out: without a range, the model would unlearn large numbers.
HELD_OUT_NUMBERS: Final = tuple(range(4, NUMBERS, 5))
TARGET_NUMBERS: Final = tuple(n for n in range(NUMBERS) if n not in HELD_OUT_NUMBERS)

TARGET_LISTS: Final = ListShape((3, 5), TARGET_NUMBERS)
LONGER_LISTS: Final = ListShape((6, 8), TARGET_NUMBERS)
OTHER_NUMBER_LISTS: Final = ListShape((3, 5), TARGET_NUMBERS, last_values=HELD_OUT_NUMBERS)
GENERAL_LISTS: Final = ListShape((3, 8), range(NUMBERS))
SHORT_LISTS: Final = ListShape((3, 5), range(NUMBERS))

TASKS: Final[Mapping[str, Generator]] = {
    # in domain
    "target_relay": lambda rng: target_item(rng, TARGET_LISTS, OPERATOR_FIRST),
    # out of distribution: one property of the target changes at a time
    "target_longer": lambda rng: target_item(rng, LONGER_LISTS, OPERATOR_FIRST),
    "target_other_numbers": lambda rng: target_item(rng, OTHER_NUMBER_LISTS, OPERATOR_FIRST),
    "target_other_format": lambda rng: target_item(rng, TARGET_LISTS, OPERATOR_LAST),
    # retention
    "recall_capitals": capital_item,
    "recall_crafts": craft_item,
    "list_last": lambda rng: list_item(rng, "last", OPERATOR_FIRST),
    "list_max": lambda rng: list_item(rng, "max", OPERATOR_FIRST),
    "sort_numbers": lambda rng: order_item(rng, "sort", OPERATOR_FIRST),
}


def split_of(item: Item) -> Split | None:
    """The only split a reasoning item may appear in; None if every split has it."""
    if not item.key:
        return None
    bucket = hashlib.sha256(item.key.encode()).digest()[0] % 10
    return "test" if bucket == 0 else "validation" if bucket == 1 else "train"


def stream(generator: Generator, split: Split, rng: random.Random) -> Iterator[Item]:
    """Endless items of one split."""
    while True:
        item = generator(rng)
        if split_of(item) in (split, None):
            yield item


def draw(task: str, split: Split, count: int, seed: int) -> list[Item]:
    """`count` items of `task` with distinct questions, the same ones for the same seed."""
    items: dict[str, Item] = {}
    rng = random.Random(f"{task}/{split}/{seed}")  # noqa: S311
    for item in stream(TASKS[task], split, rng):
        items.setdefault(item.question, item)
        if len(items) == count:
            break
    return list(items.values())


# Relative frequencies of the kinds of items in the pretraining text, and how each is drawn.
MIXTURE: Final[Sequence[tuple[int, Callable[[random.Random, str], Item]]]] = (
    (40, lambda rng, wording: list_item(rng, rng.choice(tuple(LIST_OPERATORS)), wording)),
    (20, lambda rng, wording: order_item(rng, rng.choice(("sort", "reverse")), wording)),
    (8, step_item),
    (20, lambda rng, _: capital_item(rng)),
    (12, lambda rng, _: craft_item(rng)),
)


def pretraining_item(rng: random.Random) -> Item:
    """One draw of the mixture the base model is pretrained on; never the target."""
    wording = rng.choice((OPERATOR_FIRST, OPERATOR_LAST))
    frequencies = [frequency for frequency, _ in MIXTURE]
    ((_, draw_one),) = rng.choices(MIXTURE, frequencies)
    return draw_one(rng, wording)


def vocabulary() -> list[str]:
    """Every word any task may use, in a fixed order."""
    operators = [*LIST_OPERATORS, *STEPS, "sort", "reverse", "capital", "craft", "of"]
    words = [*map(str, range(NUMBERS)), "=", ":", *operators, *CRAFTS, *PLACES, *CAPITALS]
    return list(dict.fromkeys(words))
