"""config.json's quantization_config: how the language model's weights are packed, where they are."""

from dataclasses import dataclass
from typing import Literal

from services.common.checkpoint.files import Section

AWQ_BITS, GPTQ_BITS = (4,), (4, 8)


@dataclass(frozen=True, slots=True)
class Packing:
    """Whole numbers of `bits` in words of 32. `zero_offset` is what the stored zero points lack."""

    method: Literal["awq", "gptq"]
    bits: int
    zero_offset: int


def read_packing(config: Section) -> Packing | None:
    """None for an unquantised checkpoint. CheckpointError for what the decoder cannot unpack."""
    if "quantization_config" not in config:
        return None
    section = config.section("quantization_config")
    match section.raw("quant_method"):
        case "awq":
            return _awq(section)
        case "gptq":
            return _gptq(section)
        case other:
            raise section.error("quant_method", f"is {other!r}; 'awq' and 'gptq' are supported")


def _awq(section: Section) -> Packing:
    """AutoAWQ's layout for its GEMM kernels, which is the published one."""
    version = section.text("version", "gemm")
    if version.lower() != "gemm":
        raise section.error("version", f"is {version!r}; only 'gemm' is supported")
    if not section.flag("zero_point", True):
        raise section.error("zero_point", "is false, which is not supported")
    return Packing("awq", _bits(section, AWQ_BITS), 0)


def _gptq(section: Section) -> Packing:
    """AutoGPTQ's layout, or GPTQModel's second version of it, which stores zero points as they are."""
    layout = section.text("checkpoint_format", "gptq")
    if layout not in {"gptq", "gptq_v2"} or section.flag("is_marlin_format", False):
        raise section.error("checkpoint_format", f"is {layout!r}; 'gptq' and 'gptq_v2' are supported")
    if section.raw("dynamic"):
        raise section.error("dynamic", "(bits that differ between layers) is not supported")
    return Packing("gptq", _bits(section, GPTQ_BITS), int(layout == "gptq"))


def _bits(section: Section, supported: tuple[int, ...]) -> int:
    bits = section.integer("bits", 4)
    if bits not in supported:
        raise section.error("bits", f"is {bits}; {' or '.join(map(str, supported))} is supported")
    return bits
