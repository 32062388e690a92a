"""A causal language model of the library, run on rows that come and go; knows no request."""

import copy
import inspect
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from services.engine.weights import Weights
from services.errors import ModelUnavailable
from services.text.adapters import Delta, Mix, UnfitAdapter, adapt, watched
from services.text.linear import ROWS, Packing, has_fewer_bits, is_supported, pack, shrink
from services.text.rows import ATTENTION, Feeds, Row, register

VECTORS = 32  # numbers that a processor with AVX-512 takes at once, such as in an activation
PROBE = 9  # tokens of the forward by which a model is judged
CLOSE = 0.05  # how far any score may be off then, of the scores' standard deviation
UNBOUNDED = 131_072  # tokens of context, where a model remembers without positions and names no end
TURNED_BY_LENGTH = frozenset({"longrope", "dynamic"})
OWN_NAMES = ("past_key_values", "cache_params")  # of what a model remembers, where it makes that itself
CLOSE_ROUNDED = 0.5  # of rounded rows: 0.09 in 22 layers of bfloat16, 0.13 of int8; 4 and more where attention is wrong

logger = logging.getLogger("atelier.text")


class Memory(Protocol):
    """What a network remembers of a sequence."""

    length: int  # tokens
    adapter: str | None  # that its tokens are read with

    def copy(self, length: int) -> "Memory":
        """Return another that begins with the same `length` tokens."""


@dataclass(eq=False)
class OwnCache:
    """A sequence of a model that needs the library's own cache: it cannot share a forward.

    Args:
        cache: by the name that the model knows it by; none before the first forward, where the model makes it.
        length: tokens.
        adapter: that they are read with.
    """

    cache: dict[str, Any]
    length: int = 0
    adapter: str | None = None

    def copy(self, length: int) -> "OwnCache":
        """Return another that begins with the same tokens, which must be all of them."""
        return OwnCache(copy.deepcopy(self.cache), length, self.adapter)


class Network:
    """The model in memory."""

    def __init__(
        self,
        weights: Weights,
        packing: Packing = "none",
        adapters: Mapping[str, Mapping[str, Delta]] = MappingProxyType({}),
        *,
        must_pack: bool = False,
    ) -> None:
        """Load it, and find out whether it can run several sequences in a forward.

        Args:
            weights: where they are.
            packing: of its linear layers.
            adapters: what each adds to which layers.
            must_pack: whether it is not to be run otherwise.

        Raises:
            ModelUnavailable: it cannot be run token by token, or not so packed.
            UnfitAdapter: an adapter is not for this model, or the model cannot have any.
        """
        self._device: torch.device = weights.device
        self._mix = Mix(tuple(adapters))
        self._network = load(weights, packing, adapters, self._mix)
        self._config = self._network.config.get_text_config(decoder=True)
        self.generation: Any = self._network.generation_config
        self.context = int(getattr(self._config, "max_position_embeddings", UNBOUNDED))
        self.vocabulary_size = int(self._config.vocab_size)
        self._multiple = 1
        if packing != "none" and is_supported(self._device):
            self._multiple = self._rows_of_whole_vectors(ROWS if packing == "float16" else 1)
        if must_pack and not has_fewer_bits(self._network.base_model):
            raise ModelUnavailable(f"a {type(self._network).__name__} has no layers that can be kept in {packing}")
        self.shares = self._can_share()
        reason = None if self.shares else self._why_not_at_all()
        if reason is not None and packing != "none":
            if must_pack:
                raise ModelUnavailable(f"a {type(self._network).__name__} cannot be kept in {packing}: {reason}")
            logger.warning("%s: its layers are not packed, because %s", type(self._network).__name__, reason)
            self._network = load(weights, "none", adapters, self._mix)
            reason = self._why_not_at_all()
        if reason is not None:
            raise ModelUnavailable(f"a {type(self._network).__name__} cannot be run token by token: {reason}")
        for name in adapters:
            self._try(name)
        self.bytes_per_token = self._measure()

    def new_row(self, adapter: str | None = None) -> Memory:
        """Return what remembers a sequence that is about to begin."""
        if self.shares:
            return Row(adapter=adapter)
        names = inspect.signature(self._network.forward).parameters
        own = "past_key_values" not in names
        return OwnCache({} if own else {"past_key_values": DynamicCache(config=self._config)}, adapter=adapter)

    @torch.inference_mode()
    def forward(
        self, feeds: Sequence[tuple[Any, Sequence[int]]], whole: Collection[int] = ()
    ) -> Sequence[torch.Tensor]:
        """Return the scores of the token that follows each feed, float32 of shape (1, vocabulary), on the CPU.

        Args:
            feeds: rows, and their next tokens; only one if rows cannot share. Their `length` stays as it is.
            whole: places of feeds of which the scores behind each token are returned, (tokens, vocabulary).
        """
        if not self.shares:
            return [self._run_alone(*feeds[0], num_scored=len(feeds[0][1]) if whole else 1).float().cpu()]
        laid_out = Feeds(feeds, whole, self._multiple)
        return torch.split(self._run_rows(laid_out).float().cpu(), [len(scored) for scored in laid_out.scored])

    def _run_rows(self, laid_out: Feeds) -> torch.Tensor:
        self._mix.choose(laid_out.adapters)
        scores: torch.Tensor = self._network(
            input_ids=self._tensor([laid_out.tokens]),
            position_ids=self._tensor([laid_out.positions]),
            attention_mask=torch.empty(1, 1, 1, 1, device=self._device),  # four axes: taken for ready, and ignored
            use_cache=False,
            logits_to_keep=self._tensor([place for scored in laid_out.scored for place in scored]),
            feeds=laid_out,
        ).logits
        return scores[0]

    def _run_alone(self, row: OwnCache, tokens: Sequence[int], num_scored: int = 1) -> torch.Tensor:
        self._mix.choose([row.adapter] * len(tokens))
        positions = range(row.length, row.length + len(tokens))
        answer = self._network(
            input_ids=self._tensor([tokens]),
            position_ids=self._tensor([positions]),
            **row.cache,
            use_cache=True,
            logits_to_keep=num_scored,
        )
        if not row.cache:
            row.cache = {name: answer[name] for name in OWN_NAMES if answer.get(name) is not None}
        scores: torch.Tensor = answer.logits[0, -num_scored:]
        return scores

    def _tensor(self, values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)

    def _rows_of_whole_vectors(self, rows: int) -> int:
        """The least multiple of `rows` of which no layer leaves numbers over that the processor takes one by one.

        Those come out otherwise, and which ones they are depends on how many rows there are.
        """
        widths = {getattr(self._config, name, None) or VECTORS for name in ("hidden_size", "intermediate_size")}
        return next(number for number in count(rows, rows) if not any(number * width % VECTORS for width in widths))

    def _can_share(self) -> bool:
        """Whether attention can be taken apart: the cache is plain, and the scores are the same."""
        reason = self._why_alone()
        if reason is not None:
            logger.warning("%s: sequences run one at a time, because %s", type(self._network).__name__, reason)
        return reason is None

    def _why_alone(self) -> str | None:
        layers = DynamicCache(config=self._config).layers
        if any(type(layer) is not DynamicLayer for layer in layers):
            return "its cache is not a plain one"
        if not self._network._supports_attention_backend:
            return "the library lets nobody else do its attention"
        if rope_types(self._config) & TURNED_BY_LENGTH:
            return "how it tells positions depends on the longest of the sequences"
        own = self._network.config._attn_implementation
        register()
        try:
            expected, found = self._probe(own)
        except Exception as error:
            reason = f"the trial failed ({error})"
        else:
            off = (expected - found).abs().max() / expected.std()
            if off <= self._tolerance:
                return None
            reason = f"its scores are {off:.2f} standard deviations off then"
        self._network.set_attn_implementation(own)
        return reason

    @property
    def _tolerance(self) -> float:
        rounds = self._network.dtype != torch.float32 or has_fewer_bits(self._network)
        return CLOSE_ROUNDED if rounds else CLOSE

    @torch.inference_mode()
    def _probe(self, own: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores after some tokens: by the library, and by rows that share forwards."""
        tokens = [number % self.vocabulary_size for number in range(3, 3 + PROBE)]
        self._network.set_attn_implementation(own)
        expected = self._network(input_ids=self._tensor([tokens]), logits_to_keep=1).logits[0, 0]
        self._network.set_attn_implementation(ATTENTION)
        row, other = Row(), Row()
        self._run_rows(Feeds([(other, tokens[:2]), (row, tokens[:-2])]))
        row.length = PROBE - 2
        self._run_rows(Feeds([(row, tokens[-2:-1]), (other, tokens[:1])]))
        row.length += 1
        return expected, self._run_rows(Feeds([(other, tokens[:3]), (row, tokens[-1:])]))[1]

    @torch.inference_mode()
    def _why_not_at_all(self) -> str | None:
        """Say what is wrong with sequences that are alone: the same scores are to come token by token as at once."""
        tokens = [number % self.vocabulary_size for number in range(3, 3 + PROBE)]
        try:
            expected = self._network(input_ids=self._tensor([tokens])).logits[0, -1]
            row: Any = self.new_row()
            self._run_alone(row, tokens[:-2])
            row.length = PROBE - 2
            self._run_alone(row, tokens[-2:-1])
            row.length += 1
            found = self._run_alone(row, tokens[-1:])[0]
        except Exception as error:
            return f"the trial failed ({error})"
        if not expected.isfinite().all():
            return None  # the checkpoint is broken, however it is run: its answers will say so
        off = (expected - found).abs().max() / expected.std()
        return None if off <= self._tolerance else f"its scores are {off:.2f} standard deviations off then"

    @torch.inference_mode()
    def _try(self, adapter: str) -> None:
        """Run a forward with an adapter.

        Raises:
            UnfitAdapter: the model reads other rows in a layer than its tokens', or passes the layer by.
        """
        tokens = [number % self.vocabulary_size for number in range(3, 3 + PROBE)]
        try:
            with watched(self._network) as counts:
                self.forward([(self.new_row(adapter), tokens)])
        except RuntimeError as error:
            raise UnfitAdapter(f"a {type(self._network).__name__} cannot have adapters: {error}") from error
        for layer, number in counts.items():
            if number != 1:
                message = f"a {type(self._network).__name__} asks '{layer}' {number} times a forward, and not once"
                raise UnfitAdapter(f"{message}: no adapter can change it")

    def _measure(self) -> int:
        """Bytes that a token takes in the cache."""
        if not self.shares:
            queries = getattr(self._config, "num_attention_heads", None) or 1
            heads = getattr(self._config, "num_key_value_heads", None) or queries
            width = getattr(self._config, "head_dim", None) or self._config.hidden_size // queries
            return int(2 * self._config.num_hidden_layers * heads * width * self._network.dtype.itemsize)
        row = Row()
        self._run_rows(Feeds([(row, [0])]))
        return sum(kept.shape[0] * kept.shape[2] * kept.itemsize for layer in row.layers for kept in layer)


def load(weights: Weights, packing: Packing, adapters: Mapping[str, Mapping[str, Delta]], mix: Mix) -> Any:
    """Load the library's model, its linear layers packed, and beside them what adapters add.

    Raises:
        UnfitAdapter: one is not for this model.
    """
    can_pack = packing != "none" and is_supported(weights.device)
    dtype = "auto" if can_pack else weights.dtype  # as they are, to be made larger one by one
    network: Any = AutoModelForCausalLM.from_pretrained(
        weights.folder, dtype=dtype, trust_remote_code=False, **weights.arguments
    )
    network.eval()
    spared = adapt(network, adapters, mix)
    for layer in spared if not can_pack else ():
        layer.to(weights.dtype)
    if packing == "int4":
        spared.append(network.get_output_embeddings())  # by whose scores tokens are told apart
    if can_pack:
        pack(network, packing, spared)
    else:
        if packing != "none":
            shrink(network, packing, spared)
        network.to(weights.device)
    return network


def rope_types(config: Any) -> set[str]:
    """Name the ways in which positions are told, of all kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return {str(one["rope_type"]) for one in each if one.get("rope_type")}
