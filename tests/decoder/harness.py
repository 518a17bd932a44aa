"""An engine around a tiny random checkpoint, and transformers' own answers to compare with."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2VLForConditionalGeneration

from services.common import mrope
from services.common.checkpoint import Checkpoint
from services.common.mrope import Span
from services.decoder.assemble import EngineParts, build_engine
from services.decoder.engine import Engine
from services.decoder.kv_cache import BlockPool
from services.decoder.language_model import LanguageModel
from services.decoder.prefix_cache import root_hash
from services.decoder.sequence import Begun, Event, Failed, Finished, MediaItem, Request, SamplingParams, Token
from services.decoder.settings import DecoderSettings
from services.decoder.weights import load_language_model

WAIT_S = 60
UNPACED = {"max_stretch": 1e9}  # prompts join streams however long steps take: what meets what is no matter of time


@dataclass
class Case:
    """A prompt for both sides; rows [n, hidden] stand in for an encoder."""

    token_ids: list[int]
    spans: list[Span] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)


@dataclass
class Answer:
    """What the engine has said of one request so far."""

    request: Request
    tokens: dict[int, list[int]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> "Answer":
        """Wait until the request has ended."""
        assert self.over.wait(WAIT_S), "the engine did not finish"
        return self

    @property
    def ids(self) -> list[int]:
        """Tokens of the first choice."""
        return self.tokens.get(0, [])

    @property
    def begun(self) -> Begun:
        """The first event."""
        first = self.events[0]
        assert isinstance(first, Begun), first
        return first


class Model:
    """One checkpoint with its reference."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = Checkpoint.open(str(path))
        self.language_model = load_language_model(self.checkpoint, torch.float32, torch.device("cpu"))
        self.reference: Any = Qwen2VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        self.width = self.checkpoint.text.hidden_size
        self.merge = self.checkpoint.vision.spatial_merge_size
        self.pads = {"image": self.checkpoint.image_token_id, "video": self.checkpoint.video_token_id}
        self.end_ids = frozenset(self.checkpoint.generation.eos_token_ids)

    def case(self, *parts: int | tuple[str, tuple[int, int, int]], seed: int = 0) -> Case:
        """Text of so many tokens, or ("image" | "video", merged grid), one after another."""
        random = np.random.default_rng(seed)
        case = Case([])
        for part in parts:
            if isinstance(part, int):
                case.token_ids += random.integers(0, min(self.pads.values()) - 16, part).tolist()
                continue
            kind, (t, h, w) = part
            span = Span(len(case.token_ids), (t, h * self.merge, w * self.merge), self.merge)
            case.token_ids += [self.pads[kind]] * span.num_tokens
            case.spans.append(span)
            values = random.standard_normal((span.num_tokens, self.width), dtype=np.float32)
            case.rows.append(torch.from_numpy(values))
            case.keys.append(random.bytes(32))
        return case

    @torch.inference_mode()
    def generate(self, case: Case, max_tokens: int) -> list[int]:
        """Greedy tokens of transformers' `generate`, positions by the trained rule; pads are never chosen."""
        ids = torch.tensor([case.token_ids])
        embeds = self.reference.get_input_embeddings()(ids)
        for span, rows in zip(case.spans, case.rows, strict=True):
            embeds[0, span.offset : span.offset + span.num_tokens] = rows
        positions = torch.from_numpy(mrope.positions(len(case.token_ids), case.spans))[:, None]
        delta = mrope.delta(len(case.token_ids), case.spans)
        tokens: list[int] = []
        past = None
        while len(tokens) < max_tokens:
            output = self.reference(inputs_embeds=embeds, position_ids=positions, past_key_values=past, use_cache=True)
            past = output.past_key_values
            logits = output.logits[0, -1]
            logits[list(self.pads.values())] = -torch.inf
            token = int(logits.argmax())
            if token in self.end_ids:
                break
            tokens.append(token)
            embeds = self.reference.get_input_embeddings()(torch.tensor([[token]]))
            positions = torch.full((3, 1, 1), len(case.token_ids) + len(tokens) - 1 + delta)
        return tokens


class Harness:
    """An engine with the settings of a test."""

    def __init__(self, model: Model, **settings: Any) -> None:
        self.model = model
        chosen = {"kv_cache_tokens": 4096, "max_step_tokens": 64, "block_size": 8, **settings}
        self.settings = DecoderSettings(model=str(model.path), **chosen)
        self.parts = self.build(model.language_model)
        self.engine: Engine = self.parts.engine

    def build(self, language_model: LanguageModel) -> EngineParts:
        """An engine with these settings around a model."""
        return build_engine(self.settings, self.model.checkpoint, language_model)

    @property
    def pool(self) -> BlockPool:
        return self.parts.pool

    def request(
        self, case: Case, *, tenant: str = "a", priority: int = 0, with_rows: bool = True, **params: Any
    ) -> Answer:
        """A request that is not submitted yet."""
        values = {"max_tokens": 12, "stop_ids": self.model.end_ids, **params}
        matchers = values.pop("matchers", [])
        answer: Answer

        def on_event(event: Event) -> None:
            answer.events.append(event)
            if isinstance(event, Token):
                answer.tokens.setdefault(event.index, []).append(event.token_id)
            if isinstance(event, Finished | Failed):
                answer.over.set()

        request = Request(
            request_id="test",
            tenant=tenant,
            token_ids=case.token_ids,
            positions=mrope.positions(len(case.token_ids), case.spans),
            delta=mrope.delta(len(case.token_ids), case.spans),
            media=[
                MediaItem(span.offset, span.num_tokens, key, rows if with_rows else None)
                for span, key, rows in zip(case.spans, case.keys, case.rows, strict=True)
            ],
            params=SamplingParams(**values),
            root_hash=root_hash(tenant),
            on_event=on_event,
            priority=priority,
            matchers=matchers,
        )
        answer = Answer(request)
        return answer

    def submit(self, case: Case, **options: Any) -> Answer:
        """Queue a request."""
        answer = self.request(case, **options)
        self.engine.submit(answer.request)
        return answer

    def run(self, cases: list[Case], **options: Any) -> list[Answer]:
        """Queue several at once and wait for all."""
        return [answer.wait() for answer in [self.submit(case, **options) for case in cases]]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that the engine's thread brings about."""
        deadline = threading.Event()
        for _ in range(WAIT_S * 200):
            if condition():
                return
            deadline.wait(0.005)
        raise AssertionError("the condition did not come true")


Start = Callable[..., Harness]
