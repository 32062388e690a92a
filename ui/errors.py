"""What can go wrong between the studio and the gateway, as sentences that say what to do."""

import httpx


class Problem(Exception):
    """Something did not come about; the message is for whoever sits in front of the page."""


class KeyProblem(Problem):
    """The gateway wants a key, or another one."""


class TooSlow(Problem):
    """Nothing came in time."""


class NotThere(Problem):
    """What was asked for is not there, or no more."""


def check(response: httpx.Response) -> None:
    """Pass an answer that says yes; its body may be unread.

    Raises:
        Problem: it says no.
    """
    if response.is_success:
        return
    response.read()
    raise problem_of(response)


def problem_of(response: httpx.Response) -> Problem:
    """Say what the gateway says, and what to do about it."""
    code = ""
    try:
        error = response.json()["error"]
        said, code = sentence(str(error["message"])), str(error.get("code"))
    except (ValueError, KeyError, TypeError, AttributeError):
        said = sentence(response.reason_phrase or f"The gateway answered {response.status_code}")
    match response.status_code:
        case 400 if code == "context_length_exceeded":
            return Problem(
                f"{said} All of the conversation is sent each time: begin anew, or let the answer be shorter."
            )
        case 401:
            said = sentence(said.partition(": send it as")[0])  # which is for programs
            return KeyProblem(f"{said} Give a key that is valid.")
        case 403:
            return KeyProblem(f"{said} Give another key, or ask whoever runs this for it.")
        case 404:
            return NotThere(said)
        case 429 | 503 if "try again" not in said.lower():
            seconds = response.headers.get("retry-after", "")
            return Problem(f"{said} Try again {in_words(int(seconds)) if seconds.isdecimal() else 'in a moment'}.")
    return Problem(said)


def in_words(seconds: int) -> str:
    """When, for people."""
    if seconds < 100:
        return f"in {seconds} s"
    return f"in {-(-seconds // 60)} minutes" if seconds < 6000 else f"in {-(-seconds // 3600)} hours"


def no_answer(url: str, error: Exception) -> Problem:
    """Say why nothing came of it."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Problem(f"Nothing answers at {url}. `make up` starts Atelier; `ATELIER_URL` names another place.")
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return Problem(f"{url} is no address. `ATELIER_URL` names the gateway, with http:// or https://.")
    return Problem("The answer broke off: something on the way has ended. Try again.")


def sentence(text: str) -> str:
    """Write a message with a full stop, and with a capital unless it begins with the name of a field."""
    is_field = text.partition(" ")[0].endswith(":")
    return (text[:1] if is_field else text[:1].upper()) + text[1:].rstrip(".") + "."
