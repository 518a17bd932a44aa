"""config.json: the shapes of the two halves of the network, and the ids that stand for media."""

from dataclasses import dataclass

from services.common.checkpoint.files import CheckpointError, Section

MODEL_TYPE = "qwen2_vl"


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The vision transformer. `hidden_size` is the width of what it puts out, `embed_dim` its own."""

    depth: int
    embed_dim: int
    hidden_size: int
    num_heads: int
    mlp_ratio: float
    in_channels: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int
    hidden_act: str


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The language model. `mrope_section` splits half a head's dimensions among time, height and width."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    max_position_embeddings: int
    tie_word_embeddings: bool
    hidden_act: str


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the tokens that mark and stand for media."""

    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int


def check_supported(config: Section) -> None:
    """Refuse what this project cannot run: another architecture."""
    if config.text("model_type") != MODEL_TYPE:
        raise config.error("model_type", f"is {config.raw('model_type')!r}; only {MODEL_TYPE!r} is supported")


def text_section(config: Section) -> Section:
    """Where the language model's fields stand."""
    return config.section("text_config") if "text_config" in config else config


def read_vision(config: Section) -> VisionConfig:
    """The vision half. Defaults are those of transformers' Qwen2VLVisionConfig."""
    vision = config.section("vision_config")
    return VisionConfig(
        depth=vision.integer("depth", 32),
        embed_dim=vision.integer("embed_dim", 1280),
        hidden_size=vision.integer("hidden_size", 3584),
        num_heads=vision.integer("num_heads", 16),
        mlp_ratio=vision.number("mlp_ratio", 4),
        in_channels=vision.integer("in_channels", 3),
        patch_size=vision.integer("patch_size", 14),
        spatial_merge_size=vision.integer("spatial_merge_size", 2),
        temporal_patch_size=vision.integer("temporal_patch_size", 2),
        hidden_act=vision.text("hidden_act", "quick_gelu"),
    )


def read_text(config: Section) -> TextConfig:
    """The language half. Refuses what the decoder does not compute: a sliding window, and scaled positions."""
    text = text_section(config)
    if text.flag("use_sliding_window", False):
        raise text.error("use_sliding_window", "is true, which is not supported")
    num_heads = text.integer("num_attention_heads")
    head_dim = text.integer("head_dim", text.integer("hidden_size") // num_heads)
    return TextConfig(
        vocab_size=text.integer("vocab_size"),
        hidden_size=text.integer("hidden_size"),
        intermediate_size=text.integer("intermediate_size"),
        num_hidden_layers=text.integer("num_hidden_layers"),
        num_attention_heads=num_heads,
        num_key_value_heads=text.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        rms_norm_eps=text.number("rms_norm_eps", 1e-5),
        rope_theta=_rope(text).number("rope_theta", text.number("rope_theta", 1_000_000.0)),
        mrope_section=_mrope_section(_rope(text), head_dim),
        max_position_embeddings=text.integer("max_position_embeddings", 32768),
        tie_word_embeddings=config.flag("tie_word_embeddings", text.flag("tie_word_embeddings", False)),
        hidden_act=text.text("hidden_act", "silu"),
    )


def read_special_tokens(config: Section) -> SpecialTokens:
    """The media ids, at the top of the file, else beside the text fields; defaults are Qwen2-VL's own."""
    text = text_section(config)

    def token(name: str, default: int) -> int:
        return config.integer(name, text.integer(name, default))

    return SpecialTokens(
        image_token_id=token("image_token_id", 151655),
        video_token_id=token("video_token_id", 151656),
        vision_start_token_id=token("vision_start_token_id", 151652),
        vision_end_token_id=token("vision_end_token_id", 151653),
    )


def check_agreement(config: Section, vision: VisionConfig, text: TextConfig) -> None:
    """The two halves must fit each other."""
    if vision.hidden_size != text.hidden_size:
        problem = f"is {vision.hidden_size}, but the language model's hidden_size is {text.hidden_size}"
        raise CheckpointError(f"{config.path}: vision_config.hidden_size {problem}")


def _rope(text: Section) -> Section:
    return text.section("rope_parameters" if "rope_parameters" in text else "rope_scaling")


def _mrope_section(rope: Section, head_dim: int) -> tuple[int, int, int]:
    kind = rope.raw("rope_type") or rope.raw("type")
    if kind not in {"mrope", "default"}:  # transformers writes "default" for Qwen2-VL's own
        raise rope.error("type", f"is {kind!r}; only 'mrope' is supported")
    time, height, width = (int(size) for size in rope.numbers("mrope_section", 3))
    if time + height + width != head_dim // 2:
        raise rope.error("mrope_section", f"must add up to half the head dimension, {head_dim // 2}")
    return time, height, width
