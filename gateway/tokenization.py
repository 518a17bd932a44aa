"""Text to token ids and back, by the checkpoint's own `tokenizer.json`.

A control token is one that the template may write and a user may not: every special added token, and every id the model
gives a meaning of its own (pads, vision start and end, end of sequence).
"""

import hashlib
import re
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Tokenizer


class TokenizerError(Exception):
    """The checkpoint's tokenizer cannot be used; the message says why."""


class TextTokenizer:
    """A byte-level tokenizer that never finds a control token in text."""

    def __init__(self, tokenizer: Tokenizer, structural_ids: Collection[int], digest: str) -> None:
        self.digest = digest
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _make_special(tokenizer, structural_ids)
        tokenizer.encode_special_tokens = True  # "special tokens are text" in this library's words
        added = tokenizer.get_added_tokens_decoder()
        self._control = {token.content: token_id for token_id, token in added.items() if token.special}
        self._control_pattern = _pattern([token for token in added.values() if token.special])
        self._special_ids = frozenset(self._control.values())

    @classmethod
    def open(cls, path: Path, structural_ids: Collection[int]) -> "TextTokenizer":
        """Read `tokenizer.json` in the folder `path`. Raises TokenizerError."""
        file = path / "tokenizer.json"
        if not file.is_file():
            raise TokenizerError(f"{path} has no tokenizer.json")
        data = file.read_bytes()
        return cls(Tokenizer.from_buffer(data), structural_ids, "sha256:" + hashlib.sha256(data).hexdigest())

    @property
    def control_tokens(self) -> dict[str, int]:
        """Every control token and its id."""
        return dict(self._control)

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text` in one piece; control tokens spelled in it are ordinary characters."""
        # the batch form lets go of the interpreter, so that a long text holds nobody up
        return list(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids) if text else []

    def split_control(self, rendered: str) -> Iterator[int | str]:
        """Cut a rendered prompt into ids of its control tokens and the pieces of text between them."""
        start = 0
        for match in self._control_pattern.finditer(rendered):
            if match.start() > start:
                yield rendered[start : match.start()]
            yield self._control[match.group(match.lastgroup or 0)]
            start = match.end()
        if start < len(rendered):
            yield rendered[start:]

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to the answer's bytes: nothing for a special or unused id."""
        if token_id in self._special_ids or (token := self._tokenizer.id_to_token(token_id)) is None:
            return b""
        try:
            return bytes(self._byte_of[character] for character in token)
        except KeyError:  # an added token is spelled in plain characters (tokenizers' ByteLevel decoder does the same)
            return token.encode()

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """GPT-2's map from printable characters to bytes (openai/gpt-2 `encoder.py`, `bytes_to_unicode`)."""
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _make_special(tokenizer: Tokenizer, structural_ids: Collection[int]) -> None:
    """Mark every structural token as special, whatever the file says; a word of the plain vocabulary is refused."""
    added = tokenizer.get_added_tokens_decoder()
    for token_id in structural_ids:
        token = added.get(token_id)
        if token is None:
            raise TokenizerError(
                f"id {token_id}, which the model's config names, is not an added token of the tokenizer"
            )
        if not token.special:
            tokenizer.add_special_tokens([AddedToken(token.content, special=True, normalized=False)])


def _pattern(tokens: list[AddedToken]) -> re.Pattern[str]:
    """Match any of `tokens`, the longest first, with the white space that a token's own flags swallow."""
    if not tokens:
        raise TokenizerError("the tokenizer has no special tokens")
    longest_first = sorted(tokens, key=lambda token: -len(token.content))
    return re.compile("|".join(_alternative(n, token) for n, token in enumerate(longest_first)))


def _alternative(number: int, token: AddedToken) -> str:
    left, right = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
    return f"{left}(?P<t{number}>{re.escape(token.content)}){right}"
