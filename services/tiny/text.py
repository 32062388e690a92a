"""A Llama of two layers that chats in printable ASCII."""

from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.tiny.vocabulary import MAX_CONTEXT, chat_tokenizer
from services.tiny.workbench import workbench

WIDTH, INTERMEDIATE, LAYERS = 64, 176, 2
KEYS = 32  # the width of a token's keys, and of its values


@workbench()
def build(target: Path) -> None:
    """Write model, tokenizer and generation defaults into the folder."""
    tokenizer = chat_tokenizer()
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_CONTEXT,
            initializer_range=0.2,  # at the usual 0.02 all tokens are equally likely, whatever the temperature
            tie_word_embeddings=False,
            **special,
        )
    )
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 0.25  # no prompt makes the end likely: no empty answers
    model.generation_config = GenerationConfig(
        max_length=MAX_CONTEXT, suppress_tokens=_unprintable(tokenizer), **special
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _unprintable(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """List the tokens that are not printable ASCII or a newline; the end of the text is not among them."""
    texts = {token: tokenizer.decode([token]) for token in range(len(tokenizer)) if token != tokenizer.eos_token_id}
    special = {tokenizer.unk_token_id, tokenizer.bos_token_id}
    return [
        token
        for token, text in texts.items()
        if token in special or not all(character == "\n" or " " <= character <= "~" for character in text)
    ]
