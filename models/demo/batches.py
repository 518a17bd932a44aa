"""Examples as tensors: patches for the tower; token ids, M-RoPE positions and answers for the decoder."""

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.demo.network import FRAMES_PER_SLICE, MERGE, PATCH
from models.demo.picture import Example, Picture

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
SYSTEM = "system\nYou are a helpful assistant."
VISION_ID_SHARE = 0.1
"""How often pictures are announced by "Picture 1: ", as add_vision_id asks for."""
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class PatchBatch:
    """Pictures of one size: patches [slices, h*w, 1176], the grid (slices a picture, h, w), targets of each token."""

    patches: Tensor
    grid: Grid
    cells: Tensor


def patch_batch(pictures: list[Picture]) -> PatchBatch:
    """Normalise and cut into patches, in the order (t, h/merge, w/merge, merge, merge, c, tp, ph, pw)."""
    frames = torch.from_numpy(np.stack([picture.frames for picture in pictures]))
    if frames.shape[1] == 1:
        frames = frames.expand(-1, FRAMES_PER_SLICE, -1, -1, -1)
    count, num_frames, height, width, _ = frames.shape
    pixels = (frames.float() / 255 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    slices, rows, columns = num_frames // FRAMES_PER_SLICE, height // PATCH, width // PATCH
    blocks = pixels.view(
        count * slices, FRAMES_PER_SLICE, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3
    )
    patches = blocks.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(count * slices, rows * columns, -1)
    cells = torch.from_numpy(np.stack([picture.cells for picture in pictures])).long()
    return PatchBatch(patches, (slices, rows, columns), cells)


class Conversation:
    """One example written out: ids, positions on the three axes, and which ids are answers to learn."""

    def __init__(self, encoder: "Encoder") -> None:
        self.encoder = encoder
        self.ids: list[int] = []
        self.answers: list[bool] = []
        self.positions: list[np.ndarray] = []
        self.next_position = 0

    def text(self, text: str, answer: bool = False) -> None:
        """Text that lies between two control tokens, or one control token."""
        ids = self.encoder.ids(text)
        self.ids += ids
        self.answers += [answer] * len(ids)
        self.positions.append(np.tile(np.arange(self.next_position, self.next_position + len(ids)), (3, 1)))
        self.next_position += len(ids)

    def media(self, grid: Grid) -> None:
        """Pads on a grid of slices, rows and columns; the next position is the largest of any axis plus one."""
        merged = (grid[0], grid[1] // MERGE, grid[2] // MERGE)
        self.text("<|vision_start|>")
        positions = np.indices(merged).reshape(3, -1) + self.next_position
        pad = self.encoder.image_pad if grid[0] == 1 else self.encoder.video_pad
        self.ids += [pad] * positions.shape[1]
        self.answers += [False] * positions.shape[1]
        self.positions.append(positions)
        self.next_position = int(positions.max()) + 1
        self.text("<|vision_end|>")


@dataclass(frozen=True)
class TextBatch:
    """Conversations padded on the right: ids [batch, length], positions [3, batch, length], answers [batch, length]."""

    ids: Tensor
    positions: Tensor
    answers: Tensor
    is_media: Tensor

    @property
    def num_shared(self) -> int:
        """How many columns from the left are the same text in every row."""
        same = torch.eq(self.ids, self.ids[:1]).all(0) & ~self.is_media.any(0)
        return int(same.long().cumprod(0).sum())


class Encoder:
    """Writes examples in Qwen2-VL's template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids = lru_cache(100_000)(lambda text: tokenizer.encode(text).ids)
        self.image_pad, self.video_pad, self.padding = (
            tokenizer.encode(token).ids[0] for token in ("<|image_pad|>", "<|video_pad|>", "<|endoftext|>")
        )

    def conversation(self, example: Example, grids: list[Grid], vision_id: bool = False) -> Conversation:
        """System turn, then question and answer turns; the media stand before the first question."""
        conversation = Conversation(self)
        for text in ("<|im_start|>", SYSTEM, "<|im_end|>", "\n"):
            conversation.text(text)
        for number, (question, answer) in enumerate(example.turns):
            conversation.text("<|im_start|>")
            opening = "user\n"
            for index, grid in enumerate(grids if number == 0 else []):
                label = f"{'Picture' if grid[0] == 1 else 'Video'} {index + 1}: " if vision_id else ""
                if opening + label:
                    conversation.text(opening + label)
                conversation.media(grid)
                opening = ""
            for text in (opening + question, "<|im_end|>", "\n", "<|im_start|>", "assistant\n"):
                conversation.text(text)
            conversation.text(answer, answer=True)
            conversation.text("<|im_end|>", answer=True)
            conversation.text("\n")
        return conversation

    def batch(self, examples: list[Example], grids: list[Grid], rng: Random) -> TextBatch:
        """Examples whose pictures have the same grids, side by side."""
        vision_id = rng.random() < VISION_ID_SHARE
        written = [self.conversation(example, grids, vision_id) for example in examples]
        length = max(len(conversation.ids) for conversation in written)
        ids = torch.full((len(written), length), self.padding)
        answers = torch.zeros(len(written), length, dtype=torch.bool)
        positions = torch.zeros(3, len(written), length)
        for row, conversation in enumerate(written):
            size = len(conversation.ids)
            ids[row, :size] = torch.tensor(conversation.ids)
            answers[row, :size] = torch.tensor(conversation.answers)
            positions[:, row, :size] = torch.from_numpy(np.concatenate(conversation.positions, axis=1))
        is_media = torch.isin(ids, torch.tensor([self.image_pad, self.video_pad]))
        return TextBatch(ids, positions, answers, is_media)
