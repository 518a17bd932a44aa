"""Identity cards and strips of text: capital letters and digits, one line to a row of visual tokens."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from models.demo.canvas import grain
from models.demo.fonts import Font, held_out_font, training_font, training_fonts
from models.demo.picture import CELL, CHARACTERS, MAX_CHARACTERS_PER_CELL, Example, Picture, column, no_targets

NAMES = tuple(
    """
    ADA ADAM AGNES ALAN ALBA ALEX ALICE ALMA AMIR AMY ANA ANDY ANKE ANNA ANTON ARNE AYA BASIL BEA BELLA BEN BORIS
    BRUNO CARL CARLA CARLOS CLARA COLIN CORA DAAN DAISY DANA DAVID DEBRA DELIA DIANA DIEGO DORIS EDGAR EDITH ELENA
    ELI ELLA ELSA EMIL EMMA ERIC ESTHER EVA FATIMA FELIX FINN FIONA FLORA FRANK FREYA FRITZ GEMMA GINA GRACE GRETA
    HANA HANNA HANS HARRY HASAN HEIDI HELENA HENRY HUGO IDA IGOR INES INGRID IRENE IRIS ISAAC IVAN JACK JAMES JANE
    JASON JENNY JOHN JONAS JOSE JULIA KAI KARIN KARL KENJI KLARA KURT LARA LARS LAURA LEA LENA LEO LIAM LILY LINA
    LISA LOUIS LUCA LUCY LUKAS MAJA MARCO MARIA MARK MARTIN MATEO MAX MEI MIA MILA MIRA MONA NADIA NAOMI NILS NINA
    NOAH NORA OLGA OLIVER OMAR OSCAR OTTO PABLO PAUL PAULA PETER PETRA PHILIP QUINN RALPH RAUL REMI RITA ROBIN
    ROSA RUBEN RUTH SAM SAMIR SARA SELMA SIMON SOFIA SONIA STELLA SVEN TARA TESSA THEO TIM TINA TOM UMA URSULA
    VERA VICTOR VIOLA WALTER WANDA WILMA XENIA YARA YUKI YUSUF YVONNE ZARA ZOE
    """.split()  # noqa: SIM905 - a literal list would be two hundred lines
)
HELD_OUT_EVERY = 5
"""Every fifth name never appears in training."""

FIELDS = ("name", "number", "born")
LABELS = {"name": ("NAME", "Name"), "number": ("NUMBER", "No.", "ID"), "born": ("BORN", "Born", "YEAR")}
VALUE_ROOM = 4 * CELL
"""Pixels kept for a value; what is left of the width holds labels or a portrait."""
FontPicker = Callable[[int], Font]
Rgb = tuple[int, int, int]


def names(held_out: bool) -> tuple[str, ...]:
    """The names of one side of the split."""
    return tuple(name for index, name in enumerate(NAMES) if (index % HELD_OUT_EVERY == 0) == held_out)


def random_fields(rng: Random, held_out: bool = False) -> dict[str, str]:
    """A card's values; in training half the names are random letters, so that reading beats guessing."""
    name = rng.choice(names(held_out))
    if not held_out and rng.random() < 0.5:
        name = "".join(rng.choices(CHARACTERS[:26], k=rng.randint(3, 6)))
    number = "".join(rng.choices(CHARACTERS[26:], k=5))
    return {"name": name, "number": number, "born": str(rng.randint(1940, 2019))}


def font_picker(rng: Random, held_out: bool = False) -> FontPicker:
    """One font for a whole card, at any size."""
    if held_out:
        return held_out_font
    path = rng.choice(training_fonts())
    return lambda size: training_font(path, size)


@dataclass
class Sheet:
    """Paper, ink, and where each character's middle went."""

    image: Image.Image
    ink: Rgb
    placed: list[tuple[float, float, str]]

    def line(self, text: str, font: Font, x: float, middle: float, spacing: float) -> None:
        """Write capitals character by character around a middle height."""
        draw, baseline = ImageDraw.Draw(self.image), middle - font.getbbox("H", anchor="ls")[1] / 2
        for character in text:
            draw.text((x, baseline), character, self.ink, font, anchor="ls")
            advance = font.getlength(character)
            self.placed.append((x + advance / 2, middle, character))
            x += advance + spacing

    def picture(self, rng: Random) -> Picture:
        """Add grain, and note the characters of each cell from left to right."""
        pixels = np.asarray(self.image)
        if rng.random() < 0.5:
            noisy = pixels + grain(self.image.width, self.image.height, rng)[..., None]
            pixels = noisy.clip(0, 255).astype(np.uint8)
        rows, columns = self.image.height // CELL, self.image.width // CELL
        cells = no_targets(rows * columns)
        first = column("character 1")
        cells[:, first : first + MAX_CHARACTERS_PER_CELL] = 0
        for x, y, character in self.placed:
            slots = cells[int(y) // CELL * columns + int(x) // CELL, first : first + MAX_CHARACTERS_PER_CELL]
            slots[np.count_nonzero(slots) :][:1] = 1 + CHARACTERS.index(character)
        return Picture(pixels[None], cells)


def blank(width: int, height: int, rng: Random) -> Sheet:
    """Light paper with dark ink, now and then the reverse."""
    paper: Rgb = (rng.randint(200, 255), rng.randint(200, 255), rng.randint(200, 255))
    ink: Rgb = (rng.randint(0, 70), rng.randint(0, 70), rng.randint(0, 90))
    if rng.random() < 0.2:
        paper, ink = ink, paper
    return Sheet(Image.new("RGB", (width, height), paper), ink, [])


def written_width(text: str, font: Font, spacing: float) -> float:
    """Pixels that a line takes: characters are written one by one, without kerning."""
    return sum(font.getlength(character) + spacing for character in text)


def fitting_font(texts: list[str], pick: FontPicker, room: float, rng: Random) -> tuple[Font, float]:
    """A font and letter spacing with which every text fits the room."""
    spacing = rng.uniform(0.5, 2.5)
    for size in range(rng.randint(21, 24), 11, -1):
        font = pick(size)
        if all(written_width(text, font, spacing) <= room for text in texts):
            return font, spacing
    raise ValueError(f"{texts} do not fit {room} pixels")


def draw_strip(text: str, width: int, rng: Random) -> Picture:
    """One line of text that fills most of a strip one cell high."""
    sheet = blank(width, CELL, rng)
    font, spacing = fitting_font([text], font_picker(rng), width - 4, rng)
    free = width - 4 - written_width(text, font, spacing)
    sheet.line(text, font, 2 + rng.random() * free, CELL / 2 + rng.uniform(-3, 3), spacing)
    return sheet.picture(rng)


def strip(rng: Random, width: int) -> Example:
    """A strip of random characters, or a name, to read aloud."""
    longest = width // CELL * 2 - 1
    characters = rng.choice((CHARACTERS, CHARACTERS[:26], CHARACTERS[26:]))
    text = "".join(rng.choices(characters, k=rng.randint(2, longest)))
    if rng.random() < 0.2:
        text = rng.choice([name for name in names(held_out=False) if len(name) <= longest])
    return Example(
        "strips", (draw_strip(text, width, rng),), ((rng.choice(("Read the text.", "What does it say?")), text),)
    )


CARD_SIZES = ((4, 3), (5, 3), (6, 3), (6, 4), (7, 4), (5, 4))
"""Widths and heights in cells."""


def draw_card(fields: dict[str, str], columns: int, rows: int, rng: Random, held_out: bool = False) -> Picture:
    """Three lines in any order; labels beside or above them, or a portrait; a coloured band when there is room."""
    sheet = blank(columns * CELL, rows * CELL, rng)
    pick = font_picker(rng, held_out)
    font, spacing = fitting_font(list(fields.values()), pick, VALUE_ROOM - 8, rng)
    spare = columns * CELL - VALUE_ROOM
    style = rng.choice(("beside", "portrait")) if spare >= 2 * CELL else rng.choice(("above", "plain"))
    if style == "portrait":
        draw_portrait(sheet, spare, rng)
    first_row = draw_band(sheet, rng) if rows > len(FIELDS) else 0
    for row, field in enumerate(rng.sample(FIELDS, len(FIELDS)), first_row):
        middle = row * CELL + CELL / 2 + (4 if style == "above" else rng.uniform(-2, 2))
        if style in ("beside", "above"):
            draw_label(sheet, rng.choice(LABELS[field]), pick(8 if style == "above" else 11), row, style == "above")
        left = spare if style in ("beside", "portrait") else rng.uniform(0, spare)
        sheet.line(fields[field], font, left + rng.uniform(2, 6), middle, spacing)
    return sheet.picture(rng)


def draw_label(sheet: Sheet, label: str, font: Font, row: int, above: bool) -> None:
    """Small print that says what the value is."""
    position = (4, row * CELL + 1) if above else (4, row * CELL + CELL / 2)
    ImageDraw.Draw(sheet.image).text(position, label, sheet.ink, font, anchor="lt" if above else "lm")


def draw_band(sheet: Sheet, rng: Random) -> int:
    """Colour the top or the bottom row, and say which row the lines start at."""
    width, height = sheet.image.size
    top = rng.choice((0, height - CELL))
    colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
    ImageDraw.Draw(sheet.image).rectangle((0, top, width, top + CELL - 3), fill=colour)
    return 1 if top == 0 else 0


def draw_portrait(sheet: Sheet, width: int, rng: Random) -> None:
    """A head and shoulders in the room left of the lines."""
    middle, ground = sheet.image.height / 2, rng.randint(90, 200)
    draw = ImageDraw.Draw(sheet.image)
    draw.rectangle((5, middle - 32, width - 5, middle + 32), fill=(ground, ground, rng.randint(90, 220)))
    skin = (rng.randint(120, 235), rng.randint(90, 180), rng.randint(60, 140))
    draw.ellipse((width / 2 - 11, middle - 22, width / 2 + 11, middle + 4), fill=skin)
    draw.ellipse((width / 2 - 18, middle + 8, width / 2 + 18, middle + 50), fill=sheet.ink)
    draw.rectangle((5, middle + 33, width - 5, middle + 52), fill=sheet.image.getpixel((width - 2, 0)))


def card(rng: Random, columns: int, rows: int) -> Example:
    """A card, asked for all fields, or now and then for one."""
    fields = random_fields(rng)
    turns = [
        (rng.choice(("Read the card.", "Read the card as JSON.")), json.dumps(fields)),
        ("What is the name?", fields["name"]),
        ("What is the number?", fields["number"]),
        (rng.choice(("What is the year?", "When was the person born?")), fields["born"]),
    ]
    turn = turns[0] if rng.random() < 0.75 else rng.choice(turns)
    return Example("cards", (draw_card(fields, columns, rows, rng),), (turn,))


def held_out_card(rng: Random) -> Example:
    """A card with a name and in a font that training never sees, asked for all fields."""
    fields, (columns, rows) = random_fields(rng, held_out=True), rng.choice(CARD_SIZES)
    turns = (("Read the card as JSON.", json.dumps(fields)),)
    return Example("cards", (draw_card(fields, columns, rows, rng, held_out=True),), turns)


def parse(answer: str) -> dict[str, str]:
    """The fields of an answer; none if it is not the JSON object it should be."""
    try:
        fields = json.loads(answer)
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in fields.items()} if isinstance(fields, dict) else {}
