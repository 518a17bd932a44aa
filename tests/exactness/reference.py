"""What transformers answers: its model, tokenizer, template and PIL image processor; frames and positions restated."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.exactness import restated
from tests.exactness.cases import Case, Clip, Frames, Media, Picture


@dataclass(frozen=True)
class Pixels:
    """One media item as the vision tower takes it: rows `[t*h*w, channels*2*patch*patch]` and its grid of patches."""

    rows: torch.Tensor
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class Prompt:
    """A whole input: ids `[n]`, positions `[3, n]`, kinds `[n]` (0 text, 1 image, 2 video), and the media in order."""

    ids: list[int]
    positions: np.ndarray
    kinds: list[int]
    media: list[Pixels]


class Reference:
    """A checkpoint run by transformers in fp32 on the CPU."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.model: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.video_limits = self._video_limits(folder)
        self.merge = self.processor.merge_size
        self.factor = self.processor.patch_size * self.merge
        config = self.model.config
        self._pixels: dict[int, tuple[Media, Pixels]] = {}  # by identity, which holding the item keeps unique
        self.pads = (config.image_token_id, config.video_token_id)

    def _video_limits(self, folder: Path) -> tuple[int, int]:
        path = folder / "video_preprocessor_config.json"
        if not path.exists():
            area = (self.processor.patch_size * self.processor.merge_size) ** 2
            return restated.VIDEO_MIN_TOKENS * area, restated.VIDEO_MAX_TOKENS * area
        size = json.loads(path.read_text())["size"]
        return size["shortest_edge"], size["longest_edge"]

    def pixels(self, item: Media) -> Pixels:
        """The item's patches, resized by the rule its options ask for."""
        if id(item) not in self._pixels:
            if isinstance(item, Picture):
                pixels = self._image(item)
            else:
                pixels = self._video(self._frames(item), dict(item.options))
            self._pixels[id(item)] = item, pixels
        return self._pixels[id(item)][1]

    def _image(self, item: Picture) -> Pixels:
        image, options = restated.upright_rgb(item.data), item.options
        resize, size = True, dict(self.processor.size)
        if "resized_height" in options:
            sides = [restated.exact(int(options[f"resized_{side}"]), self.factor) for side in ("width", "height")]
            image, resize = image.resize((sides[0], sides[1]), Image.Resampling.BICUBIC), False
        else:
            size["shortest_edge"] = int(options.get("min_pixels", size["shortest_edge"]))
            size["longest_edge"] = int(options.get("max_pixels", size["longest_edge"]))
        out = self.processor(images=[image], size=size, do_resize=resize, return_tensors="pt")
        t, h, w = out["image_grid_thw"][0].tolist()
        return Pixels(out["pixel_values"], (t, h, w))

    def _frames(self, item: Clip | Frames) -> list[Image.Image]:
        if isinstance(item, Frames):
            frames = [restated.upright_rgb(frame) for frame in item.frames]
            return frames + frames[-1:] * (len(frames) % 2)
        frames, rate = restated.decode_all(item.data)
        return [frames[i] for i in restated.frame_indices(len(frames), rate, item.options)]

    def _video(self, frames: list[Image.Image], options: dict[str, float]) -> Pixels:
        if "resized_height" in options:
            height, width = (
                restated.exact(int(options[f"resized_{side}"]), self.factor) for side in ("height", "width")
            )
        else:
            limits = restated.video_limits(len(frames), self.factor, options, self.video_limits)
            height, width = restated.fit(frames[0].height, frames[0].width, self.factor, *limits)
        resized = [frame.resize((width, height), Image.Resampling.BICUBIC) for frame in frames]
        p = self.processor
        rows = restated.patches(resized, p.patch_size, p.merge_size, p.image_mean, p.image_std)
        return Pixels(torch.from_numpy(rows), (len(frames) // 2, height // p.patch_size, width // p.patch_size))

    def prompt(self, case: Case) -> Prompt:
        """The case as ids and positions, by transformers' template and tokenizer."""
        messages = [{"role": role, "content": [_content(piece) for piece in pieces]} for role, pieces in case.turns]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, add_vision_id=case.add_vision_id
        )
        media = [self.pixels(item) for item in case.media]
        counts = iter([int(np.prod(item.grid)) // self.merge**2 for item in media])
        ids: list[int] = []
        item_of: list[int] = []
        for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            repeat = next(counts) if token in self.pads else 1
            number = max(item_of, default=0) + 1 if token in self.pads else 0
            ids += [token] * repeat
            item_of += [number] * repeat
        positions = np.array(list(restated.walk_positions(item_of, [m.grid for m in media], self.merge))).T
        kinds = [self.pads.index(token) + 1 if item else 0 for token, item in zip(ids, item_of, strict=True)]
        return Prompt(ids, positions, kinds, media)

    def _inputs(self, case: Case, prompt: Prompt) -> dict[str, torch.Tensor]:
        inputs = {
            "input_ids": torch.tensor([prompt.ids]),
            "attention_mask": torch.ones(1, len(prompt.ids), dtype=torch.long),
            "mm_token_type_ids": torch.tensor([prompt.kinds], dtype=torch.int),
        }
        for suffix, kind in (("", Picture), ("_videos", (Clip, Frames))):
            chosen = [m for m, item in zip(prompt.media, case.media, strict=True) if isinstance(item, kind)]
            if chosen:
                inputs["pixel_values" + suffix] = torch.cat([m.rows for m in chosen])
                inputs["video_grid_thw" if suffix else "image_grid_thw"] = torch.tensor([m.grid for m in chosen])
        return inputs

    @torch.inference_mode()
    def generate(self, case: Case, max_tokens: int, min_tokens: int = 0) -> tuple[Prompt, list[int]]:
        """The prompt, and greedy ids as transformers' `generate` gives them, the ending id left out."""
        prompt = self.prompt(case)
        positions = torch.from_numpy(prompt.positions)[:, None, :]
        out = self.model.generate(
            **self._inputs(case, prompt), position_ids=positions, max_new_tokens=max_tokens,
            min_new_tokens=min_tokens, do_sample=False, suppress_tokens=list(self.pads),
            temperature=None, top_p=None, top_k=None,
        )  # fmt: skip
        ids = out[0, len(prompt.ids) :].tolist()
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return prompt, ids[:-1] if ids and ids[-1] in ends else ids

    def own_positions(self, case: Case, prompt: Prompt) -> np.ndarray:
        """The positions `[3, n]` that this release of transformers would use by itself."""
        inputs = self._inputs(case, prompt)
        grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
        positions, _ = self.model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **grids)
        return np.asarray(positions[:, 0])

    @torch.inference_mode()
    def first_token(self, case: Case) -> np.ndarray:
        """Log probabilities `[vocabulary]` of the first token."""
        prompt = self.prompt(case)
        positions = torch.from_numpy(prompt.positions)[:, None, :]
        out = self.model(**self._inputs(case, prompt), position_ids=positions, logits_to_keep=1)
        logits = out.logits[0, -1].float()
        return np.asarray(torch.log_softmax(logits, -1))

    @torch.inference_mode()
    def embeddings(self, item: Media) -> np.ndarray:
        """The vision tower's rows `[tokens, width]` for one item."""
        pixels = self.pixels(item)
        out = self.model.model.visual(pixels.rows.to(self.model.dtype), grid_thw=torch.tensor([pixels.grid]))
        return np.asarray(out.pooler_output.float())


def _content(piece: object) -> dict[str, object]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    return {"type": "image"} if isinstance(piece, Picture) else {"type": "video"}
