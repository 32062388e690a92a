"""A peer: the pipeline behind LitServe's batching; runs in an environment of its own, which `benchmarks.servers` makes.

`python -m benchmarks.peer_litserve PORT BATCH_TIMEOUT`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import litserve  # type: ignore[import-not-found]  # not in our lock

from benchmarks.painter import CHECKPOINT_VARIABLE, Order, Painter


class Peer(litserve.LitAPI):  # type: ignore[misc]  # it has no types here
    """Pictures from text, a batch at a time."""

    def setup(self, device: str) -> None:
        """Load the pipeline, in the process that uses it."""
        self._painter = Painter(Path(os.environ[CHECKPOINT_VARIABLE]))

    def decode_request(self, request: Mapping[str, Any]) -> Order:
        """Read an order."""
        return Order(**request)

    def batch(self, inputs: Sequence[Order]) -> list[Order]:
        """Let the orders be."""
        return list(inputs)

    def predict(self, orders: Sequence[Order]) -> list[str]:
        """Draw them."""
        return self._painter.paint(orders)

    def unbatch(self, output: list[str]) -> list[str]:
        """Let the pictures be."""
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        """Wrap a picture."""
        return {"png": output}


def main() -> None:
    """Serve until told to stop."""
    port, batch_timeout = int(sys.argv[1]), float(sys.argv[2])
    api = Peer(max_batch_size=8, batch_timeout=batch_timeout)
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
