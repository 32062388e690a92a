"""How far scores are from those in float32, by how a chat model's layers are kept: `python -m benchmarks.exactness`.

Of random weights, which have fewer outliers than trained ones.
"""

import sys

import torch

from benchmarks.llama import FOLDER, build, prompts
from services.engine.weights import Weights
from services.text.linear import Packing
from services.text.network import Network

NUM_PROMPTS = 32
KINDS: dict[str, tuple[torch.dtype, Packing]] = {
    "bfloat16, plain": (torch.bfloat16, "none"),
    "float16 packed": (torch.float32, "float16"),
    "int8 packed": (torch.float32, "int8"),
    "int4 packed": (torch.float32, "int4"),
}


def scores(dtype: torch.dtype, packing: Packing) -> torch.Tensor:
    """Return those of the token after each prompt, (prompts, vocabulary); each prompt has a forward of its own."""
    network = Network(Weights(FOLDER, {"use_safetensors": True}, torch.device("cpu"), dtype), packing)
    return torch.stack([network.forward([(network.new_row(), prompt.tokens)])[0][0] for prompt in prompts(NUM_PROMPTS)])


def main() -> None:
    """Load one after the other, and say how they differ."""
    build()
    expected = scores(torch.float32, "none")
    for name, (dtype, packing) in KINDS.items():
        found = scores(dtype, packing)
        off = ((found - expected).std(1) / expected.std(1)).mean()
        agreement = (found.argmax(1) == expected.argmax(1)).float().mean()
        divergence = torch.nn.functional.kl_div(
            found.log_softmax(1), expected.log_softmax(1), reduction="none", log_target=True
        ).sum(1)
        sys.stdout.write(
            f"| {name} | {off:.5f} | {divergence.mean():.1e} | {agreement * NUM_PROMPTS:.0f} of {NUM_PROMPTS} |\n"
        )


if __name__ == "__main__":
    main()
