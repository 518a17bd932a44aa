"""The tokenizer: Qwen2's byte-level BPE with merges for the words of the skills, so that each is one token."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from models.demo.mix import DRAWERS
from models.demo.picture import COLOURS, KINDS, seeded
from models.demo.scenes import PLACES
from models.demo.words import BLIND, SMALL_TALK

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 cuts text before merging; every digit stands alone."""
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
MERGED_VOCABULARY = 1000
"""More than the words need: merging ends when each is one token."""


def lines() -> list[str]:
    """Every word of the skills; capitals and digits are left out, so that they stay single tokens."""
    rng, found = seeded("vocabulary"), ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    for name in ("shapes", "pairs", "videos", "digits", "text"):
        draw = DRAWERS[name](rng)
        found += [text for _ in range(500) for turn in draw(rng).turns for text in turn]
    found += [text for turn in SMALL_TALK for text in turn] + list(BLIND)
    found += [*PLACES, *COLOURS, *KINDS, "yes", "no", "up", "down", "left", "right", "first", "second", "nothing"]
    found += ["What is the name?", "What is the number?", "When was the person born?", "What is the year?"]
    found += ['{"name": "", "number": "", "born": ""}', "Read the card as", "Read the text.", "What does it say?"]
    return [*sorted(set(found)), "Picture 1: Picture 2: Video 1: "]


def build_tokenizer() -> Tokenizer:
    """Train the merges and add Qwen2-VL's control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=MERGED_VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, template: str) -> None:
    """The tokenizer's files as published checkpoints have them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    parsed = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(parsed["vocab"], ensure_ascii=False))
    merges = "\n".join(" ".join(merge) for merge in parsed["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in SPECIAL_TOKENS
        },
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "processor_class": "Qwen2VLProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
