"""The Llama that chats, before it is trained: its tokenizer is made of the dialogues' words."""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.tiny.train.dialogues import conversation
from services.tiny.vocabulary import chat_tokenizer
from services.tiny.workbench import workbench

SEED = 1
NUM_TEXTS = 4000  # conversations that the tokenizer is made of
VOCABULARY = 1536  # tokens
WIDTH, INTERMEDIATE, LAYERS = 128, 384, 4
MAX_CONTEXT = 1024  # tokens


class Chatter:
    """A chat model and its tokenizer."""

    def __init__(self) -> None:
        """Make them, with random weights."""
        self.tokenizer: PreTrainedTokenizerFast = chat_tokenizer(_texts(), VOCABULARY, MAX_CONTEXT)
        special = {
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        self.network = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=WIDTH,
                intermediate_size=INTERMEDIATE,
                num_hidden_layers=LAYERS,
                num_attention_heads=WIDTH // 32,
                num_key_value_heads=2,
                max_position_embeddings=MAX_CONTEXT,
                tie_word_embeddings=True,
                dtype=torch.float32,
                **special,
            )
        )
        self.network.generation_config = GenerationConfig(max_length=MAX_CONTEXT, **special)

    def save_pretrained(self, folder: Path) -> None:
        """Write both into the folder."""
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@workbench()
def untrained() -> Chatter:
    """Return a chat model that babbles."""
    return Chatter()


def build(target: Path) -> None:
    """Write one that babbles into the folder."""
    untrained().save_pretrained(target)


def _texts() -> Iterator[str]:
    chance = random.Random(SEED)
    for _ in range(NUM_TEXTS):
        for turn in conversation(chance):
            yield f"<|{turn['role']}|>\n"
            yield turn["content"]
