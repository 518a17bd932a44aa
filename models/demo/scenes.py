"""Pictures of one to four shapes, one in each quarter, and questions about them; pairs of such pictures."""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from models.demo.canvas import Canvas, Mark, background, tint
from models.demo.picture import CELL, COLOURS, KINDS, Example, Picture

PLACES = ("top left", "top right", "bottom left", "bottom right")
Size = tuple[int, int]
Turn = tuple[str, str]


@dataclass(frozen=True)
class Thing:
    """A shape of a colour in a quarter of the picture."""

    colour: str
    kind: str
    place: str

    def __str__(self) -> str:
        return f"{self.colour} {self.kind}"


def scene_size(rng: Random, sides: tuple[int, ...] = (3, 3, 4, 5)) -> Size:
    """Width and height in pixels, each drawn on its own so that aspect ratios vary."""
    return rng.choice(sides) * CELL, rng.choice(sides) * CELL


def random_thing(rng: Random, place: str | None = None) -> Thing:
    """Any colour, any kind."""
    return Thing(rng.choice(tuple(COLOURS)), rng.choice(KINDS), place or rng.choice(PLACES))


def random_things(rng: Random, most: int = 4) -> tuple[Thing, ...]:
    """One to `most` shapes in reading order."""
    places = sorted(rng.sample(PLACES, rng.randint(1, most)), key=PLACES.index)
    return tuple(random_thing(rng, place) for place in places)


def place_centre(place: str, size: Size, radius: float, rng: Random) -> tuple[float, float]:
    """A point of the quarter that keeps a shape of this radius within it."""
    quarter = PLACES.index(place)
    half_width, half_height = size[0] / 2, size[1] / 2
    x = half_width * (quarter % 2) + radius + rng.random() * (half_width - 2 * radius)
    y = half_height * (quarter // 2) + radius + rng.random() * (half_height - 2 * radius)
    return x, y


def mark(thing: Thing, size: Size, rng: Random) -> Mark:
    """A thing somewhere in its quarter, in some shade, a little turned."""
    radius = rng.uniform(0.33, 0.46) * min(size) / 2
    centre = place_centre(thing.place, size, radius, rng)
    return Mark(thing.colour, thing.kind, centre, radius, tint(thing.colour, rng), rng.uniform(-0.2, 0.2))


def draw_things(things: Iterable[Thing], size: Size, rng: Random) -> Picture:
    """Draw each thing somewhere in its quarter."""
    canvas = Canvas(background(*size, rng), zoom=rng.choice((1, 2)))
    for thing in things:
        canvas.shape(mark(thing, size, rng))
    return Picture(canvas.pixels()[None], canvas.cells())


def describe(things: Iterable[Thing]) -> str:
    """All things in reading order."""
    return ", ".join(map(str, things))


def ask_what(things: tuple[Thing, ...], rng: Random) -> Turn:
    """Name everything."""
    return rng.choice(("What is in the picture?", "Describe the picture.", "What can you see?")), describe(things)


def ask_count(things: tuple[Thing, ...], rng: Random) -> Turn:
    """Count all shapes."""
    return rng.choice(("How many shapes are there?", "Count the shapes.")), str(len(things))


def ask_colour(things: tuple[Thing, ...], rng: Random) -> Turn | None:
    """The colour of the only shape of its kind."""
    single = [thing for thing in things if sum(other.kind == thing.kind for other in things) == 1]
    if not single:
        return None
    thing = rng.choice(single)
    return rng.choice((f"What colour is the {thing.kind}?", f"What color is the {thing.kind}?")), thing.colour


def ask_kind(things: tuple[Thing, ...], rng: Random) -> Turn | None:
    """The kind of the only shape of its colour."""
    single = [thing for thing in things if sum(other.colour == thing.colour for other in things) == 1]
    if not single:
        return None
    thing = rng.choice(single)
    return rng.choice((f"Which shape is {thing.colour}?", f"What shape is {thing.colour}?")), thing.kind


def ask_where(things: tuple[Thing, ...], rng: Random) -> Turn | None:
    """The quarter of the only shape of its kind, named with or without its colour."""
    single = [thing for thing in things if sum(other.kind == thing.kind for other in things) == 1]
    if not single:
        return None
    thing = rng.choice(single)
    return f"Where is the {rng.choice((str(thing), thing.kind))}?", thing.place


def ask_place(things: tuple[Thing, ...], rng: Random) -> Turn:
    """What a quarter holds."""
    place = rng.choice(PLACES)
    return f"What is at the {place}?", next((str(thing) for thing in things if thing.place == place), "nothing")


def ask_presence(things: tuple[Thing, ...], rng: Random) -> Turn:
    """Whether a shape is there: as often yes as no, and a no often differs in one word only."""
    asked = rng.choice(things)
    if rng.random() < 0.5:
        return f"Is there a {asked}?", "yes"
    other = random_thing(rng)
    near = rng.choice((Thing(asked.colour, other.kind, ""), Thing(other.colour, asked.kind, ""), other))
    return f"Is there a {near}?", "yes" if any(str(thing) == str(near) for thing in things) else "no"


QUESTIONS = {ask_what: 1, ask_count: 1, ask_colour: 4, ask_kind: 1, ask_where: 6, ask_place: 1, ask_presence: 1}
"""How often training asks each: to find one shape by name among others is what is learnt last."""


def ask(things: tuple[Thing, ...], rng: Random, num_turns: int, evenly: bool = False) -> tuple[Turn, ...]:
    """Different kinds of questions about the same things, in any order; training prefers what is hard."""
    order = sorted(
        QUESTIONS, key=lambda question: rng.random() ** (1 if evenly else 1 / QUESTIONS[question]), reverse=True
    )
    asked = [question(things, rng) for question in order]
    return tuple(turn for turn in asked if turn)[:num_turns]


def scene(rng: Random, size: Size, most: int = 4, num_turns: int = 2, evenly: bool = False) -> Example:
    """A picture of shapes and questions about it."""
    things = random_things(rng, most)
    return Example("shapes", (draw_things(things, size, rng),), ask(things, rng, num_turns, evenly))


def pair(rng: Random, sizes: tuple[Size, Size], num_turns: int = 2) -> Example:
    """Two pictures of one shape each, as often the same shape as not."""
    first = random_thing(rng)
    second = Thing(first.colour, first.kind, rng.choice(PLACES)) if rng.random() < 0.3 else random_thing(rng)
    pictures = tuple(draw_things((thing,), size, rng) for thing, size in zip((first, second), sizes, strict=True))
    return Example("pairs", pictures, ask_pair(first, second, rng, num_turns))


def ask_pair(first: Thing, second: Thing, rng: Random, num_turns: int) -> tuple[Turn, ...]:
    """Which picture shows a thing, whether both show the same, and what each shows."""
    same = str(first) == str(second)
    turns = [
        (rng.choice(("Do the pictures show the same?", "Are the pictures the same?")), "yes" if same else "no"),
        rng.choice((("What is in the first picture?", str(first)), ("What is in the second picture?", str(second)))),
    ]
    things = (first, second)
    for names in ([thing.kind for thing in things], [str(thing) for thing in things]):
        if names[0] != names[1]:
            picked = rng.randrange(2)
            turns.append((f"Which picture shows a {names[picked]}?", ("first", "second")[picked]))
    return tuple(rng.sample(turns, len(turns))[:num_turns])
