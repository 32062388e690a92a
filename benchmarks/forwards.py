"""What a forward of a chat model costs by how its layers are kept, and with adapters: `python -m benchmarks.forwards`.

The processor's time of one thread, least of several: it says the same on a machine that others use as well.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any, get_args

import torch

from benchmarks.llama import FOLDER, adapter, build, prompts
from services.engine.weights import Weights
from services.text.adapters import read_adapter
from services.text.linear import Packing
from services.text.network import Network

ADAPTERS = ("one", "other")
NONE = (None,) * 8
MIXED = (None, *ADAPTERS, None, *ADAPTERS, None, ADAPTERS[0])
REPEATS = 5


def milliseconds(network: Network, adapters: Sequence[str | None]) -> float:
    """Measure the next token of as many rows as there are `adapters`."""
    rows: list[Any] = [network.new_row(name) for name in adapters]
    network.forward([(row, prompt.tokens[:16]) for row, prompt in zip(rows, prompts(8), strict=False)])
    for row in rows:
        row.length = 16
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        network.forward([(row, [5]) for row in rows])
        times.append(time.process_time() - began)
    return 1000 * min(times)


def main() -> None:
    """Load one after the other, and say what its forwards take."""
    build()
    torch.set_num_threads(1)
    deltas = {name: read_adapter(adapter(name), 1.0) for name in ADAPTERS}
    sys.stdout.write(
        "| layers | 1 row | 8 rows | 1 row with an adapter | 8 rows, 5 with one of two |\n|---|---|---|---|---|\n"
    )
    for packing in get_args(Packing)[1:]:
        weights = Weights(FOLDER, {"use_safetensors": True}, torch.device("cpu"), torch.float32)
        network = Network(weights, packing, deltas)
        found = [milliseconds(network, names) for names in (NONE[:1], NONE, MIXED[1:2], MIXED)]
        sys.stdout.write(f"| {packing} | {' | '.join(f'{each:.0f} ms' for each in found)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
