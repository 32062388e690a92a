"""Links that carry their caller's leave for a while: a browser's player cannot send a key. Knows no routes."""

import hmac
import json
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from starlette.types import Scope

from gateway.errors import InvalidSignature, NotSignable

MAX_SECONDS = 3600  # that a link may be good for
PARAMETERS = ("expires", "key", "signature")
WHEN = re.compile("[0-9]{1,12}")  # seconds since the epoch
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class SignedUrl:
    """A link, and when it ends in seconds since the epoch."""

    url: str
    expires_at: int


class Signer:
    """Signs links and knows its own again; gateways that share a secret know each other's."""

    def __init__(self, secret: bytes, *others: bytes) -> None:
        """Sign with `secret`, and know what one of the `others` has signed."""
        self._secrets = (secret, *others)

    def sign(self, link: str, caller_id: str, expires_in: int) -> SignedUrl:
        """Return `link` with a signature.

        Args:
            link: a path with its query.
            caller_id: whose leave the link carries.
            expires_in: seconds, at most `MAX_SECONDS`.

        Raises:
            NotSignable: it leads elsewhere, or is signed already.
        """
        parts = urlsplit(link)
        path, query = unquote(parts.path), parse_qsl(parts.query, keep_blank_values=True)
        if parts.scheme or parts.netloc or parts.fragment or not path.startswith("/"):
            raise NotSignable("path: must be a path of this gateway with its query, such as /generate/image?prompt=…")
        if any(name in PARAMETERS for name, _ in query):
            raise NotSignable(f"path: must not have the parameters of a signature: {', '.join(PARAMETERS)}")
        expires = int(time.time()) + expires_in
        signature = signature_of(self._secrets[0], path, query, expires, caller_id)
        signed = [*query, ("expires", str(expires)), ("key", caller_id), ("signature", signature)]
        return SignedUrl(f"{quote(path)}?{urlencode(signed)}", expires)

    def verify(self, scope: Scope) -> str | None:
        """Return whose leave the request carries; None where its link is not signed.

        The caller's key may have been revoked since. The signature is taken out of the query: nobody else reads it.

        Raises:
            InvalidSignature: it is another link's, has ended, or the method is not GET or HEAD.
        """
        asked: bytes = scope["query_string"]
        if not asked:
            return None
        query = parse_qsl(asked.decode("latin-1"), keep_blank_values=True)
        if not any(name == "signature" for name, _ in query):
            return None
        signed = [pair for pair in query if pair[0] in PARAMETERS]
        rest = [pair for pair in query if pair[0] not in PARAMETERS]
        given = dict(signed)
        scope["query_string"] = urlencode(rest).encode()
        if scope["method"] not in ("GET", "HEAD"):
            raise InvalidSignature("a signed URL is good for GET and HEAD only")
        if sorted(name for name, _ in signed) != sorted(PARAMETERS) or not WHEN.fullmatch(given["expires"]):
            raise InvalidSignature("this URL is signed, but not as this gateway signs; ask for a new one")
        said = scope["path"], rest, int(given["expires"]), given["key"]
        expected = [signature_of(secret, *said).encode() for secret in self._secrets]
        if not any(hmac.compare_digest(each, given["signature"].encode()) for each in expected):
            raise InvalidSignature("this URL is not the one that was signed; ask for one for what you want")
        if int(given["expires"]) < time.time():
            raise InvalidSignature("this signed URL has expired; ask for a new one")
        return given["key"]


def signature_of(secret: bytes, path: str, query: Pairs, expires: int, caller_id: str) -> str:
    """Sign what a link says, as JSON, in which no part can pass for a piece of its neighbour."""
    said = json.dumps(["GET", path, sorted(query), expires, caller_id])
    return hmac.new(secret, said.encode(), sha256).hexdigest()


def load_secret(file: Path) -> bytes:
    """Read the secret of all gateways over one data folder; the first of them makes it."""
    if not file.exists():
        draft = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.touch(0o600, exist_ok=False)
        draft.write_text(secrets.token_hex(32), encoding="ascii")
        with suppress(FileExistsError):  # another was quicker
            file.hardlink_to(draft)  # whole, or not at all
        draft.unlink()
    return file.read_bytes()
