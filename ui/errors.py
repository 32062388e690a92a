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
    try:
        said = sentence(str(response.json()["error"]["message"]))
    except (ValueError, KeyError, TypeError):
        said = sentence(response.reason_phrase or f"The gateway answered {response.status_code}")
    match response.status_code:
        case 401:
            return KeyProblem(f"{said} Give a key that is valid.")
        case 403:
            return KeyProblem(f"{said} Give another key, or ask whoever runs this for it.")
        case 404:
            return NotThere(said)
        case 429 | 503:
            seconds = response.headers.get("retry-after", "")
            return Problem(f"{said} Try again {f'in {seconds} s' if seconds.isdecimal() else 'in a moment'}.")
    return Problem(said)


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
