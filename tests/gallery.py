"""Writes docs/gallery of what a `make up` that runs makes: `python -m tests.gallery [URL]`, or `make gallery`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"
URL = "http://127.0.0.1:8000"
HEAD = """# Gallery

What the trained tiny models make, on any processor and without a download. `make gallery` writes this page: it asks a
`make up` that runs.
"""
CHATS: Sequence[tuple[str, Sequence[str]]] = (
    ("About Atelier", ("What is Atelier?", "How do I start it?", "Where is the studio?", "Do I need a GPU?")),
    (
        "Routes",
        ("How do I make a picture?", "Which route do I use to edit a picture?", "How do I draw in the terminal?"),
    ),
    ("Errors", ("What does error 429 mean?", "Which status has model_loading?", "I got a 401.")),
    ("Sums", ("What is 17 + 25?", "How much is 61 - 38?", "Which is larger, 39 or 93?")),
    ("Who says what", ("Hello, my name is Tovari.", "Spell garden.", "What is my name?", "Thank you!")),
    ("What it does not know", ("What is the capital of Peru?", "What time is it?")),
    ("A story", ("Tell me a story about a fox.",)),
)
ALOUD = ("Where is the studio?", "What does error 404 mean?", "What is 17 + 25?")


def main(url: str) -> None:
    """Have everything made, and write the page."""
    FOLDER.mkdir(exist_ok=True)
    with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
        sections = [line for section in SECTIONS for line in section(client)]
    (FOLDER / "README.md").write_text("\n".join([HEAD, *sections, ""]), encoding="utf-8")


def text(client: httpx.Client) -> Iterator[str]:
    """Chat, and have some of it asked of a pirate."""
    yield "## Text"
    for title, asked in CHATS:
        yield f"\n### {title}\n\n{chat(client, asked)}"
    yield f"\n### With the adapter `pirate`\n\n{chat(client, ALOUD, adapter='pirate')}"


def chat(client: httpx.Client, asked: Sequence[str], **fields: str) -> str:
    """One conversation; what is likeliest is said, so that everyone reads the same."""
    turns: list[dict[str, str]] = []
    for question in asked:
        turns.append({"role": "user", "content": question})
        body = {"model": "chat", "messages": turns, "temperature": 0, **fields}
        answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        turns.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    exchanges = zip(turns[::2], turns[1::2], strict=True)
    return "\n>\n".join(f"> **{question['content']}**<br>{answer['content']}" for question, answer in exchanges)


SECTIONS: Sequence[Callable[[httpx.Client], Iterator[str]]] = (text,)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else URL)
