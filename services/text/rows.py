"""Sequences of tokens and what attention keeps of them; those of one forward lie one after the other, without padding.

Plugs into the library's attention interface: to the model a forward is one sequence, and attention takes it apart.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

ATTENTION = "atelier_rows"  # what a model's configuration calls it
GROWTH = 128  # tokens that a row's memory grows by, at least
STRIDE = 8  # tokens that look back together: always the same ones, so that it does not matter how a prompt is cut


@dataclass(eq=False)
class Row:
    """One sequence, and the keys and values of its first `length` tokens.

    Args:
        layers: of each layer keys and values, (heads, capacity, width).
        adapter: that has made them.
    """

    length: int = 0
    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    adapter: str | None = None

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Put those of new tokens, (heads, n, width), behind the others, and return all.

        Until `length` is moved on, the next call overwrites them: a forward may be repeated.
        """
        end = self.length + keys.shape[1]
        if layer == len(self.layers):
            self.layers.append((roomy(keys, end), roomy(values, end)))
        elif self.layers[layer][0].shape[1] < end:
            self.layers[layer] = tuple(grown(kept, self.length, end) for kept in self.layers[layer])  # type: ignore[assignment]
        all_keys, all_values = self.layers[layer]
        all_keys[:, self.length : end] = keys
        all_values[:, self.length : end] = values
        return all_keys[:, :end], all_values[:, :end]

    @classmethod
    def of(cls, blocks: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]], adapter: str | None = None) -> "Row":
        """Return a row of what others with the same adapter have cut out of theirs, in order."""
        row = cls(adapter=adapter)
        for block in blocks:
            for number, (keys, values) in enumerate(block):
                row.write(number, keys, values)
            row.length += block[0][0].shape[1]
        return row

    def cut(self, start: int, end: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return a copy of what is kept of some of its tokens."""
        return [(keys[:, start:end].clone(), values[:, start:end].clone()) for keys, values in self.layers]

    def copy(self, length: int) -> "Row":
        """Return another row that begins with the same `length` tokens."""
        layers = [(grown(keys, length, length), grown(values, length, length)) for keys, values in self.layers]
        return Row(length, layers, self.adapter)


def roomy(like: torch.Tensor, length: int) -> torch.Tensor:
    """Return memory for `length` tokens and some more."""
    return like.new_empty(like.shape[0], length + spare(length), like.shape[2])


def spare(length: int) -> int:
    """How many tokens more than `length` a row has memory for, at most."""
    return max(GROWTH, length // 2)


def grown(kept: torch.Tensor, length: int, needed: int) -> torch.Tensor:
    """Return memory for `needed` tokens and some more, with the first `length` in it."""
    larger = roomy(kept, needed)
    larger[:, :length] = kept[:, :length]
    return larger


class Feeds:
    """New tokens of rows for the next forward."""

    def __init__(
        self, feeds: Sequence[tuple[Row, Sequence[int]]], whole: Container[int] = (), multiple: int = 1
    ) -> None:
        """Lay them out one after the other.

        Args:
            feeds: rows, and their new tokens.
            whole: the places of those of which every token is scored.
            multiple: of how many tokens a forward is; tokens of no row are put behind the others.
        """
        self._feeds = feeds
        self._whole = whole
        self._num_missing = -sum(len(tokens) for _, tokens in feeds) % multiple

    @property
    def tokens(self) -> list[int]:
        """All tokens."""
        return [token for _, tokens in self._feeds for token in tokens] + [0] * self._num_missing

    @property
    def positions(self) -> list[int]:
        """Each token's place in its row."""
        found = [row.length + index for row, tokens in self._feeds for index in range(len(tokens))]
        return found + [0] * self._num_missing

    @property
    def adapters(self) -> list[str | None]:
        """Each token's adapter."""
        return [row.adapter for row, tokens in self._feeds for _ in tokens] + [None] * self._num_missing

    @property
    def scored(self) -> list[range]:
        """Where of each feed the tokens lie whose next one is scored: the last, or all."""
        return [
            range(start if place in self._whole else end - 1, end) for place, (_, start, end) in enumerate(self.spans())
        ]

    def spans(self) -> Iterator[tuple[Row, int, int]]:
        """Yield each row, and from where to where its new tokens lie."""
        end = 0
        for row, tokens in self._feeds:
            start, end = end, end + len(tokens)
            yield row, start, end


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    feeds: Feeds,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Let every token see those before it in its row.

    Args:
        module: the layer; it knows its number.
        query: (1, heads, tokens, width), those of all feeds.
        key: the same; several heads of `query` may share one of these.
        value: the same.
        attention_mask: ignored.
        feeds: what is in it.
        scaling: of the scores; None: by the width.
        softcap: must be None.
    """
    if softcap is not None:
        raise NotImplementedError("attention with a soft cap")
    num_heads, num_tokens = query.shape[1:3]
    attended = query.new_zeros(1, num_tokens, num_heads, value.shape[-1])
    for row, start, end in feeds.spans():
        keys, values = row.write(module.layer_idx, key[0, :, start:end], value[0, :, start:end])
        length = row.length + end - start
        for first, last in strides(row.length, length) if query.device.type == "cpu" else [(row.length, length)]:
            place = slice(start + first - row.length, start + last - row.length)
            attended[:, place] = seen(query[:, :, place], keys[None, :, :last], values[None, :, :last], scaling)
    return attended, None


def strides(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut the tokens from `start` to `end` of a row where it has a multiple of `STRIDE`."""
    while start < end:
        following = min((start // STRIDE + 1) * STRIDE, end)
        yield start, following
        start = following


def seen(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Attend from the last tokens to all before them.

    Args:
        query: (1, heads, n, width).
        keys: (1, heads, all, width); several heads of `query` may share one of these.
        values: the same.
        scaling: of the scores; None: by the width.

    Returns:
        (1, n, heads, width).
    """
    num_heads, num_new, width = query.shape[1:]
    num_shared, length = num_heads // keys.shape[1], keys.shape[2]
    mask = None
    if num_new > 1:
        mask = torch.ones(num_new, length, dtype=torch.bool, device=query.device).tril(length - num_new)
        mask = mask.repeat(num_shared, 1)
    # Heads that share keys are to attention what more tokens are.
    packed = query.reshape(1, keys.shape[1], num_shared * num_new, width)
    found = scaled_dot_product_attention(packed, keys, values, mask, scale=scaling)
    return found.reshape(1, num_heads, num_new, -1).transpose(1, 2)


def register() -> None:
    """Make `attend` known to the library; may be called again."""
    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)  # each row's follows from its lengths
