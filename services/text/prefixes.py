"""What attention keeps of prompts that begin alike: read once, and kept until the memory is wanted for others."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch

from services.text.rows import Row

BLOCK = 32  # tokens that are kept or dropped together

Block = list[tuple[torch.Tensor, torch.Tensor]]  # of each layer keys and values, (heads, BLOCK, width)


class Prefixes:
    """Blocks of prompts, the least recently used dropped first."""

    def __init__(self, max_bytes: float) -> None:
        """Keep at most `max_bytes`."""
        self._max_bytes = max_bytes
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._num_bytes = 0

    @property
    def keeps_some(self) -> bool:
        """Whether anything is ever kept."""
        return self._max_bytes > 0

    def knows(self, blocks: Sequence[bytes], length: int) -> bool:
        """Whether the block behind `length` tokens is kept."""
        place = length // BLOCK
        return place < len(blocks) and blocks[place] in self._blocks

    def begin(self, prompt: Sequence[int], adapter: str | None = None) -> Row:
        """Return a row that begins with as much of `prompt` as is known; the last token is always left to be read."""
        known = []
        for name in names(prompt[:-1], adapter):
            if name not in self._blocks:
                break
            known.append(name)
        for name in reversed(known):  # what others begin with stays longest
            self._blocks.move_to_end(name)
        return Row.of([self._blocks[name] for name in known], adapter)

    def keep(self, prompt: Sequence[int], row: Row) -> None:
        """Remember what `row` has of `prompt`, which it has read."""
        added = []
        for number, name in enumerate(names(prompt, row.adapter)):
            if name not in self._blocks:
                self._blocks[name] = row.cut(number * BLOCK, (number + 1) * BLOCK)
                self._num_bytes += size_of(self._blocks[name])
            added.append(name)
        for name in reversed(added):
            self._blocks.move_to_end(name)
        while self._num_bytes > self._max_bytes:
            _, dropped = self._blocks.popitem(last=False)
            self._num_bytes -= size_of(dropped)


def names(prompt: Sequence[int], adapter: str | None = None) -> Iterator[bytes]:
    """Name each whole block by its tokens, by all before it and by the adapter that reads it."""
    name = b"" if adapter is None else adapter.encode()
    for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
        name = hashlib.sha256(name + array("q", prompt[start : start + BLOCK]).tobytes()).digest()
        yield name


def goes_along(blocks: Sequence[bytes], other: Sequence[bytes], other_length: int) -> bool:
    """Whether the block that another prompt reads next is one of this prompt's too.

    Args:
        blocks: names of the blocks of a prompt.
        other: of another.
        other_length: tokens of it that have been read.
    """
    place = other_length // BLOCK
    return place < min(len(blocks), len(other)) and blocks[place] == other[place]


def size_of(block: Block) -> int:
    """Its bytes."""
    return sum(kept.numel() * kept.itemsize for layer in block for kept in layer)
