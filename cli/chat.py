"""`atelier chat`: an answer to a prompt, or a conversation on the terminal."""

import json
import sys
from collections.abc import Generator, Mapping
from contextlib import closing
from typing import Any

import typer

from cli.client import PATIENCE, Server, answer, asked
from cli.errors import CommandError
from cli.events import END, events_of

PATH = "/v1/chat/completions"
Turn = dict[str, str]


def answer_once(server: Server, turns: list[Turn], fields: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the answer as it is written, or all that is known of it as JSON.

    Raises:
        NoAnswer: nothing answers, it says no, or it broke off.
    """
    if as_json:
        made = answer("POST", server, PATH, json={**fields, "messages": turns}, timeout=PATIENCE)
        typer.echo(json.dumps(made))
        return
    said(server, turns, fields)


def converse(server: Server, turns: list[Turn], fields: Mapping[str, Any]) -> None:
    """Ask for turn after turn and answer each, until the input ends; Ctrl-C ends an answer, and then the command."""
    import readline  # noqa: F401 - lines can be edited once it is there

    typer.echo("Ctrl-C ends an answer, Ctrl-D the chat.", err=True)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            typer.echo(err=True)
            return
        if not text:
            continue
        asking: list[Turn] = [*turns, {"role": "user", "content": text}]
        try:
            turns[:] = [*asking, {"role": "assistant", "content": said(server, asking, fields)}]
        except KeyboardInterrupt:
            typer.echo("\n(ended; this turn is forgotten)", err=True)
        except CommandError as error:
            typer.echo(f"atelier: {error}", err=True)


def said(server: Server, turns: list[Turn], fields: Mapping[str, Any]) -> str:
    """Print an answer as it is written, and return it; whoever leaves takes the connection with him."""
    pieces: list[str] = []
    with closing(pieces_of(server, {**fields, "messages": turns, "stream": True})) as coming:
        try:
            for piece in coming:
                pieces.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        finally:
            if pieces and not pieces[-1].endswith("\n"):
                typer.echo()
    return "".join(pieces)


def pieces_of(server: Server, body: Mapping[str, Any]) -> Generator[str]:
    """Yield what a chat is answered with.

    Raises:
        NoAnswer: nothing answers, it says no, or it broke off.
    """
    with asked("POST", server, PATH, json=body, timeout=PATIENCE) as response:
        for event in events_of(response.iter_lines()):
            if event.name == END:
                return
            for choice in event.fields.get("choices", ()):
                yield choice["delta"].get("content") or ""
