"""Compare the exported checkpoint with transformers: `python -m models.demo.verify`."""

from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import Qwen2VLForConditionalGeneration

from models.demo.batches import Encoder, patch_batch
from models.demo.heldout import SKILLS, examples
from models.demo.network import Network, Shape
from models.demo.picture import Example

FOLDER = Path(__file__).parent
TOLERANCE = 1e-4


def largest_difference(
    reference: Qwen2VLForConditionalGeneration, network: Network, encoder: Encoder, example: Example
) -> float:
    """Between the logits of transformers and of the training network, over a whole conversation."""
    batches = [patch_batch([picture]) for picture in example.pictures]
    conversation = encoder.conversation(example, [batch.grid for batch in batches])
    ids, positions = (
        torch.tensor([conversation.ids]),
        torch.cat([torch.from_numpy(p) for p in conversation.positions], 1),
    )
    media = {}
    if batches:
        name = "" if batches[0].grid[0] == 1 else "_videos"
        media["pixel_values" + name] = torch.cat([batch.patches.flatten(0, 1) for batch in batches])
        media["image_grid_thw" if not name else "video_grid_thw"] = torch.tensor([batch.grid for batch in batches])
    expected = reference(input_ids=ids, position_ids=positions[:, None], use_cache=False, **media).logits
    states = network.model.embed_tokens(ids)
    if batches:
        seen = torch.cat([network.visual(batch.patches, batch.grid[1:]).flatten(0, 1) for batch in batches])
        pads = torch.isin(ids, torch.tensor([encoder.image_pad, encoder.video_pad]))
        states = states.masked_scatter(pads[..., None], seen)
    states, _ = network.model(states, positions[:, None].float(), torch.ones_like(ids, dtype=torch.bool))
    return float((states @ network.model.embed_tokens.weight.T - expected).abs().max())


@torch.no_grad()
def main() -> None:
    """Check a few held-out conversations of each skill."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    network = Network(Shape(tokenizer.get_vocab_size()))
    network.load_state_dict(load_file(FOLDER / "model.safetensors"))
    reference = Qwen2VLForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    reference.train(mode=False)
    tested = chain.from_iterable(examples(skill, 5) for skill in SKILLS)
    worst = max(largest_difference(reference, network, Encoder(tokenizer), example) for example in tested)
    print(f"largest difference of a logit: {worst:.2e}")
    if worst > TOLERANCE:
        raise SystemExit("the checkpoint and transformers disagree")


if __name__ == "__main__":
    main()
