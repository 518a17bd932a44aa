"""Conversations without a picture: greetings, what the model can do, and questions that cannot be answered blind."""

from random import Random

from models.demo import scenes, videos
from models.demo.picture import Example
from models.demo.scenes import Turn

NO_PICTURE = "I cannot see a picture."
SMALL_TALK: tuple[Turn, ...] = (
    ("Hello", "Hello! Show me a picture."),
    ("Hello!", "Hello! Show me a picture."),
    ("Hi", "Hello! Show me a picture."),
    ("Who are you?", "I am a small model that answers questions about pictures."),
    ("What can you do?", "I can name shapes, read cards and digits, and watch short videos."),
    ("What can you read?", "I can read cards and digits."),
    ("Thank you.", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("How are you?", "I am well, thank you."),
)
BLIND = (
    "What can you see?",
    "Read the card.",
    "Read the text.",
    "Which digit is this?",
    "What is the name?",
    "What moves?",
)


def chat(rng: Random, num_turns: int = 3) -> Example:
    """A few turns, half of them about a picture that is not there."""
    return Example(
        "text", (), tuple(_blind(rng) if rng.random() < 0.5 else rng.choice(SMALL_TALK) for _ in range(num_turns))
    )


def _blind(rng: Random) -> Turn:
    questions = [rng.choice(BLIND)]
    questions += [question for question, _ in scenes.ask(scenes.random_things(rng), rng, 1)]
    questions += [
        question for question, _ in videos.ask_events(scenes.random_thing(rng), scenes.random_thing(rng), rng, 1)
    ]
    return rng.choice(questions), NO_PICTURE
