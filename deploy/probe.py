"""`python probe.py PORT PATH`: exit 0 if this machine's server answers 200; what containers are asked for their health.

Runs every few seconds, and so imports next to nothing.
"""

import socket
import sys


def is_well(port: int, path: str) -> bool:
    """Whether the answer is a 200."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        return connection.recv(32).split()[1:2] == [b"200"]


if __name__ == "__main__":
    sys.exit(not is_well(int(sys.argv[1]), sys.argv[2]))
