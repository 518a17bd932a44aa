"""llama.cpp, with its own quantized weights: the programs that it was built with, under build/bin of LLAMA_CPP.

Weights are the checkpoint's; files in llama.cpp's format are written beside it the first time. There is no tokenizer in
them, which costs no time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open

from benchmarks.figures import BATCHES, CONTEXT, MILLISECONDS, TOKENS_PER_S, Effort, argument_parser, say

HOME = Path(os.environ["LLAMA_CPP"])
WHOLE = "F16"  # what the others are made of
PLACES = 256  # a sequence's share of the context is a multiple
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def ensure_weights(checkpoint: Path, weights: str) -> Path:
    """The file with weights of a type, written the first time."""
    path = checkpoint.with_name(f"{checkpoint.name}-{weights}.gguf")
    if not path.exists():
        part = path.with_suffix(".part")
        if weights == WHOLE:
            _write_whole(checkpoint, part)
        else:
            _run("llama-quantize", ensure_weights(checkpoint, WHOLE), part, weights, _num_threads())
        part.rename(path)
    return path


def _write_whole(checkpoint: Path, path: Path) -> None:
    sys.path.insert(0, str(HOME / "gguf-py"))
    from gguf import GGUFWriter  # noqa: PLC0415 -- only there

    config = json.loads((checkpoint / "config.json").read_text())
    writer = GGUFWriter(path, "qwen2vl")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_sections([*config["rope_scaling"]["mrope_section"], 0])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 -- not a mapping
            if (own_name := _name(name)) is not None:
                tensor = tensors.get_tensor(name)
                dtype = torch.float16 if tensor.dim() > 1 else torch.float32
                writer.add_tensor(own_name, tensor.to(dtype).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str | None:
    """llama.cpp's name of a language model's tensor; None for the vision tower's."""
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    if not stem.startswith("model.layers."):
        return None
    _, _, index, part = stem.split(".", 3)
    return f"blk.{index}.{NAMES[part]}.{kind}"


def _run(program: str, *arguments: object) -> list[dict[str, Any]]:
    """The objects that a program prints, a line each."""
    command = [str(HOME / "build" / "bin" / program), *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603 -- as the caller built it
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _num_threads() -> int:
    return torch.get_num_threads()


def main() -> None:
    """All figures of one checkpoint."""
    parser = argument_parser(__doc__)
    parser.add_argument("--weights", default="Q8_0")
    arguments = parser.parse_args()
    effort, model = Effort.of(arguments), ensure_weights(Path(arguments.checkpoint), arguments.weights)
    common = ("-m", model, "-t", _num_threads())
    of_each = -(CONTEXT + effort.num_tokens) // PLACES * -PLACES
    batches = ",".join(map(str, BATCHES))
    for found in _run(
        "llama-batched-bench",
        *(*common, "-c", max(BATCHES) * of_each, "-npp", CONTEXT, "-ntg", effort.num_tokens, "-npl", batches),
        *("-pps", "--output-format", "jsonl"),
    ):
        say(f"decode, batch {found['pl']}", found["speed_tg"], TOKENS_PER_S)
    lengths = ",".join(map(str, effort.prefills))
    for found in _run("llama-bench", *common, "-p", lengths, "-n", 0, "-r", effort.num_repeats, "-o", "jsonl"):
        say(f"prefill {found['n_prompt']}", median(found["samples_ns"]) / 1e6, MILLISECONDS)


if __name__ == "__main__":
    main()
