"""Tokens to text, by tokenizers of both kinds: byte-level, and SentencePiece's with bytes for what it does not know."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from services.text.writing import Vocabulary, Writer
from services.tiny.vocabulary import chat_tokenizer

SPACE = "\u2581"
TEXTS = st.text(st.sampled_from("ab \nHeé世😀\u0301"), max_size=12)


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Like Llama's: words with their space, letters, and all bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [SPACE, f"{SPACE}Hello", f"{SPACE}world", "a", "b", "H", "e"]
    bpe = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    strip = decoders.Strip(" ", 1, 0)
    bpe.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


BYTE_LEVEL, LLAMA = chat_tokenizer(), llama_tokenizer()

by_tokenizer = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, LLAMA], ids=["byte-level", "llama"])


def ids(*pieces: str) -> list[int]:
    return [int(LLAMA.convert_tokens_to_ids(piece)) for piece in pieces]  # type: ignore[arg-type]


def written(tokenizer: Any, tokens: list[int], *stops: str, context: tuple[int, ...] = ()) -> tuple[str, list[str]]:
    writer = Writer(tokenizer, stops, context)
    pieces = []
    for token in tokens:
        pieces.append(writer.add(token))
        if writer.is_stopped:
            return "".join(pieces), pieces
    pieces.append(writer.finish())
    assert writer.num_released == len("".join(pieces))
    return "".join(pieces), pieces


@by_tokenizer
@given(text=TEXTS)
def test_text_is_what_the_library_decodes_and_no_character_is_torn(tokenizer: Any, text: str) -> None:
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole, pieces = written(tokenizer, tokens)

    assert whole == tokenizer.decode(tokens)
    assert not any("\ufffd" in piece for piece in pieces)


@by_tokenizer
@given(tokens=st.lists(st.integers(3, 258), max_size=20))
def test_any_tokens_can_be_written(tokenizer: Any, tokens: list[int]) -> None:
    whole, _ = written(tokenizer, tokens)
    expected = tokenizer.decode(tokens)
    shown = iter(whole)

    assert all(character in shown for character in expected.replace("\ufffd", ""))  # in this order
    assert "\ufffd" in expected or whole == expected


@by_tokenizer
@given(text=TEXTS, stop=st.text(st.sampled_from("ab \né世"), min_size=1, max_size=3))
def test_a_stop_string_never_shows_however_it_is_cut(tokenizer: Any, text: str, stop: str) -> None:
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(tokens)
    shown, pieces = written(tokenizer, tokens, stop, "no such stop")

    assert shown == whole.split(stop)[0]
    assert "".join(pieces) == shown


def test_bytes_that_are_no_character_behind_one_that_is_out_do_not_end_the_text() -> None:
    tokens = ids(f"{SPACE}Hello", "<0x0A>", "<0xE4>", "a")

    assert written(LLAMA, tokens)[0] in ("Hello\n\ufffda", "Hello\ufffd\ufffda")


def test_a_text_that_goes_on_keeps_its_first_space() -> None:
    world = ids(f"{SPACE}world")
    hello = tuple(ids(f"{SPACE}Hello"))

    assert written(LLAMA, world, context=hello)[0] == " world"
    assert written(LLAMA, world)[0] == "world"


def test_a_text_that_goes_on_from_half_a_character_loses_none_of_its_own() -> None:
    cat = "\U0001f408".encode()
    begun, rest = (tuple(ids(*(f"<0x{byte:02X}>" for byte in part))) for part in (cat[:3], cat[3:]))

    assert written(LLAMA, [*rest, *ids("a", "b")], context=begun)[0] == "\ufffdab"


def test_a_single_token_shows_with_its_space_and_its_bytes() -> None:
    vocabulary = Vocabulary(LLAMA)
    world, byte = ids(f"{SPACE}world", "<0xE4>")

    assert (vocabulary.text(world), bytes(vocabulary.bytes(world) or [])) == (" world", b" world")
    assert vocabulary.bytes(byte) == [0xE4]
    letters = Vocabulary(BYTE_LEVEL)
    for token in BYTE_LEVEL("é世", add_special_tokens=False)["input_ids"]:
        assert letters.bytes(token) is not None
    joined = b"".join(bytes(letters.bytes(token) or []) for token in BYTE_LEVEL("é世")["input_ids"][1:])
    assert joined.decode() == "é世"
