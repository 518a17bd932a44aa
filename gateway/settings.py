"""The gateway's settings: its addresses, what it may reach, and the operator's defaults and ceilings."""

import ipaddress
from pathlib import Path

from pydantic import Field, FilePath, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.channels import KEEPALIVE_S
from services.common.server import ServerSettings
from services.common.settings import CommaSeparated, CommonSettings
from services.common.workers.settings import WorkerSettings

from .reach.addresses import Target

CONNECTION_GRACE_S = 30.0

_MIB = 1 << 20
_TOKEN_PIXELS = 28 * 28


class Limits(BaseSettings):
    """The most that one request may ask for."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="DIPTYCH_GATEWAY_", extra="forbid", env_ignore_empty=True)

    max_messages: int = Field(default=1000, gt=0, description="Turns in a conversation.")
    max_parts: int = Field(default=1000, gt=0, description="Parts in a turn.")
    max_media: int = Field(default=128, ge=0, description="Images and videos in a conversation.")
    max_media_bytes: int = Field(default=64 * _MIB, gt=0, description="Bytes of one picture or video.")
    max_request_media_bytes: int = Field(default=256 * _MIB, gt=0, description="Bytes of all media of a request.")
    max_text_chars: int = Field(default=1_000_000, gt=0, description="Characters of text in a conversation.")
    max_prompt_tokens: int = Field(default=0, ge=0, description="Tokens of a prompt; 0 is what the context holds.")
    max_completion_tokens: int = Field(default=8192, gt=0, description="Tokens of an answer; also when none are named.")
    max_image_pixels: int = Field(
        default=16384 * _TOKEN_PIXELS, gt=0, description="Pixels a request may ask for in an image."
    )
    max_frame_pixels: int = Field(
        default=16384 * _TOKEN_PIXELS, gt=0, description="Pixels a request may ask for in a frame."
    )
    max_video_pixels: int = Field(default=128_000 * _TOKEN_PIXELS, gt=0, description="Pixels of all frames of a video.")
    max_video_frames: int = Field(default=768, ge=2, description="Frames used of a video.")
    max_video_fps: float = Field(default=120.0, gt=0, description="Frames sampled per second of a video.")
    max_batch_items: int = Field(default=256, gt=0, description="Conversations in a batch.")
    max_choices: int = Field(default=16, gt=0, description="Answers to one prompt.")
    max_top_logprobs: int = Field(default=20, ge=0, description="Alternatives reported at each token.")
    max_logit_biases: int = Field(default=1024, ge=0, description="Entries of logit_bias.")
    max_stops: int = Field(default=16, ge=0, description="Stop strings, and stop ids.")
    max_stop_chars: int = Field(default=256, gt=0, description="Characters of a stop string.")
    max_structure_chars: int = Field(
        default=65_536, gt=0, description="Characters of a schema, expression, choice or grammar."
    )


class MediaDefaults(BaseSettings):
    """The operator's values for options that a request leaves unset; unset here too, the checkpoint's hold."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="DIPTYCH_GATEWAY_", extra="forbid", env_ignore_empty=True)

    image_min_pixels: int | None = Field(default=None, gt=0, description="Least pixels of an image.")
    image_max_pixels: int | None = Field(default=None, gt=0, description="Most pixels of an image.")
    video_min_pixels: int | None = Field(default=None, gt=0, description="Least pixels of a video's frame.")
    video_max_pixels: int | None = Field(default=None, gt=0, description="Most pixels of a video's frame.")
    video_total_pixels: int | None = Field(default=None, gt=0, description="Pixels of all frames of a video.")
    video_fps: float | None = Field(default=None, gt=0, description="Frames sampled per second of a video.")


class FetchSettings(BaseSettings):
    """Which URIs the gateway follows; none unless configured."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="DIPTYCH_GATEWAY_", extra="forbid", env_ignore_empty=True)

    file_roots: CommaSeparated = Field(default=(), description="Folders under which file: URIs may point.")
    allow_http: bool = Field(default=False, description="Fetch http: and https: URIs.")
    fetch_hosts: CommaSeparated = Field(default=(), description="Hosts that may be fetched from; any if empty.")
    fetch_networks: CommaSeparated = Field(
        default=(), description="Networks that may be fetched from though not public."
    )
    fetch_timeout_s: float = Field(
        default=10.0, gt=0, description="Seconds that one fetch may take, redirects included."
    )
    fetch_max_redirects: int = Field(default=3, ge=0, description="Redirects that are followed.")

    @field_validator("file_roots")
    @classmethod
    def _existing_folders(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        for root in roots:
            if not Path(root).is_dir():
                raise ValueError(f"{root} is not a folder")
        return tuple(str(Path(root).resolve()) for root in roots)

    @field_validator("fetch_networks")
    @classmethod
    def _networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        for network in networks:
            ipaddress.ip_network(network)
        return networks


class GatewaySettings(CommonSettings, ServerSettings, Limits, MediaDefaults, FetchSettings, WorkerSettings):
    """All of the gateway's settings."""

    model_config = SettingsConfigDict(
        frozen=True, env_prefix="DIPTYCH_GATEWAY_", validate_by_name=True, extra="forbid", env_ignore_empty=True
    )

    encoder: str = Field(description="Encoders: host:port or dns:///host:port, IP addresses with commas, or unix:PATH.")
    decoder: str = Field(description="Decoders: the same.")
    max_message_bytes: int = Field(default=64 * _MIB, ge=_MIB, description="Largest message that is accepted.")
    tokens_file: FilePath | None = Field(
        default=None, description="Who may call: lines of tenant, user or admin, and a token's SHA-256."
    )
    allow_reflection: bool = Field(
        default=False,
        validation_alias="DIPTYCH_ALLOW_REFLECTION",
        description="Show the API to callers without a token, too.",
    )
    max_calls: int = Field(default=1024, gt=0, description="Calls under way here, of all tenants; more are refused.")
    quota_calls: int = Field(default=0, ge=0, description="Calls that a tenant may have under way here; 0 is no limit.")
    quota_cost: int = Field(
        default=0,
        ge=0,
        description="Patches, prompt tokens and tokens still to be answered that a tenant may have under way here; 0 is"
        " no limit.",
    )
    quota_cache_bytes: int = Field(
        default=0,
        ge=0,
        description="Bytes that a tenant may hold in the shared cache, of all gateways and encoders together; 0 is no"
        " limit. What is beyond them is not stored.",
    )
    quota_requests_per_minute: int = Field(
        default=0,
        ge=0,
        description="Calls that a tenant may begin here in a minute, a batch counting as its conversations; 0 is no"
        " limit.",
    )
    quota_cost_per_minute: int = Field(
        default=0,
        ge=0,
        description="Patches, prompt tokens and answered tokens that a tenant may take here in a minute; 0 is no"
        " limit.",
    )
    quotas_file: FilePath | None = Field(
        default=None,
        description="Quotas of single tenants: lines of tenant, calls, cost and, if wanted, cache bytes, requests per"
        " minute and cost per minute.",
    )
    greedy_default: bool = Field(default=False, description="Temperature 0 for requests that name none.")
    max_request_s: float = Field(default=600.0, gt=0, description="Seconds that a request may take.")
    max_connection_age_s: float = Field(
        default=300.0,
        ge=0,
        description="Seconds after which a client is asked to connect anew, and so to find new gateways; 0 is never.",
    )
    keepalive_s: float = Field(
        default=KEEPALIVE_S,
        gt=0,
        description="Seconds after which an encoder or decoder that says nothing is pinged; when there is no answer in"
        " as many again, its calls have failed.",
    )
    batch_concurrency: int = Field(default=16, gt=0, description="Conversations of one batch that run at once.")
    media_memory_bytes: int = Field(
        default=256 * _MIB, gt=0, description="Bytes of media kept here for want of a cache."
    )

    @property
    def knows_callers(self) -> bool:
        """By token or by certificate."""
        return self.tokens_file is not None or super().knows_callers

    @property
    def connection_age_s(self) -> tuple[float, float] | None:
        """Calls under way get the time of the longest request, and half a minute for their last words."""
        age_s = self.max_connection_age_s
        return (age_s, self.max_request_s + CONNECTION_GRACE_S) if age_s else None

    @property
    def auth_variables(self) -> str:
        """Either of the two."""
        return f"DIPTYCH_GATEWAY_TOKENS_FILE or {super().auth_variables}"

    @field_validator("encoder", "decoder")
    @classmethod
    def _target(cls, address: str) -> str:
        target = target_of(address)
        Target.parse(target)
        return target


def target_of(address: str) -> str:
    """The gRPC target of one address as it is, of several with commas as a list. ValueError unless those are IPv4."""
    addresses = [part.strip() for part in address.split(",") if part.strip()]
    if len(addresses) < 2:
        return address.strip()
    for one in addresses:
        try:
            ipaddress.IPv4Address(one.rpartition(":")[0])
        except ValueError as error:
            raise ValueError(f"{one} in a list of several is not an IPv4 address and a port") from error
    return "ipv4:" + ",".join(addresses)
