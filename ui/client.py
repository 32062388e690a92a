"""Asks the gateway over HTTP, with the key of whoever looks at the page; knows no widget."""

import json
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from ui.bodies import CHAT, ROUTES, Picture, route_of, wrapped
from ui.errors import Problem, TooSlow, check, no_answer, sentence
from ui.events import events_of
from ui.talk import Chunks

PATIENCE = httpx.Timeout(10, read=60)  # seconds
MAX_KEYS = 1000  # that the gateway shows at once
MAX_BUCKETS = 168
PREVIEW_PATIENCE = httpx.Timeout(2, read=0.2)  # what is not there yet is not waited for


@dataclass(frozen=True)
class Client:
    """The gateway, as one person asks it.

    Args:
        http: the connections of all.
        url: where the gateway is.
        key: that is sent; empty: none.
    """

    http: httpx.Client
    url: str
    key: str = field(repr=False)

    # --- what there is ---

    def models(self) -> list[dict[str, Any]]:
        """The models that the key may use."""
        return list(self._json("GET", "/v1/models")["data"])

    def voices(self, model: str | None) -> list[str]:
        """The voices of a model; None: of the default."""
        asked = {"model": model} if model is not None else {}
        return [str(each["id"]) for each in self._json("GET", "/v1/audio/voices", params=asked)["data"]]

    def workers(self) -> dict[str, str]:
        """The state of the worker of each task."""
        with self._asked("GET", "/readyz", is_checked=False) as response:
            response.read()
            return dict(response.json().get("workers", {}))

    # --- jobs ---

    def begin(self, task: str, fields: Mapping[str, Any], picture: Picture | None = None) -> str:
        """Have something made by a job; return its id."""
        body = wrapped(task, fields, picture)
        job = self._json("POST", route_of(task, picture), headers={"prefer": "respond-async"}, **body)
        return str(job["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """All that is known of a job."""
        return self._json("GET", f"/v1/jobs/{job_id}")

    def jobs(
        self, kind: str | None = None, limit: int = 20, after: str | None = None, status: str | None = None
    ) -> dict[str, Any]:
        """A page of the jobs, newest first."""
        asked = {"kind": kind, "limit": limit, "after": after, "status": status}
        return self._json("GET", "/v1/jobs", params={name: value for name, value in asked.items() if value is not None})

    def cancel(self, job_id: str) -> None:
        """End a job."""
        self._json("POST", f"/v1/jobs/{job_id}/cancel")

    def retry(self, job_id: str) -> None:
        """Begin a job again that failed or was cancelled."""
        self._json("POST", f"/v1/jobs/{job_id}/retry")

    def delete(self, job_id: str) -> None:
        """Delete a job with its files."""
        self._json("DELETE", f"/v1/jobs/{job_id}")

    def file(self, path: str) -> bytes:
        """A file of a job, by the URL in its output."""
        with self._asked("GET", path) as response:
            return response.read()

    def preview(self, job_id: str) -> bytes | None:
        """The latest sketch of what a job makes, as it is known at this instant."""
        try:
            with self._asked("GET", f"/v1/jobs/{job_id}/events", timeout=PREVIEW_PATIENCE) as response:
                found = (fields["b64"] for name, fields in events_of(response.iter_lines()) if name == "preview")
                return next(map(b64decode, found), None)
        except TooSlow:
            return None

    # --- text ---

    def chat(self, fields: Mapping[str, Any]) -> Chunks:
        """Yield the chunks of an answer with the headers that it came under; who stops reading stops the model."""
        body = {**fields, "stream": True, "stream_options": {"include_usage": True}}
        with self._asked("POST", CHAT, json=body) as response:
            for _, chunk in events_of(response.iter_lines()):
                if "error" in chunk:
                    raise Problem(sentence(str(chunk["error"].get("message"))))
                yield response.headers, chunk

    # --- usage ---

    def budgets(self) -> list[dict[str, Any]]:
        """The budgets of the key, and how far they are used."""
        return list(self._json("GET", "/v1/budgets")["data"])

    def budgets_of_all(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the budgets of all keys with whose key it is, by a request for each that has any; for admins."""
        for key in self._keys():
            if key["budgets"] and not key["revoked_at"]:
                whose, used = f"{key['owner']} ({key['id']})", self._json("GET", f"/v1/keys/{key['id']}")["used"]
                for period, limits in key["budgets"].items():
                    for unit, limit in limits.items():
                        yield whose, {"period": period, "unit": unit, "limit": limit, "used": used[period][unit]}

    def _keys(self) -> Iterator[dict[str, Any]]:
        """Yield all keys, newest first."""
        asked: dict[str, Any] = {"limit": MAX_KEYS}
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            page = self._json("GET", "/v1/keys", params=asked)
            for key in page["data"]:
                yield key
                asked["after"] = key["id"]

    def totals(
        self, since: str, width: str, groups: Iterable[str] = (), percentiles: Iterable[str] = ()
    ) -> list[dict[str, Any]]:
        """What the requests for something to be made come to, in buckets of time."""
        asked = {"since": since, "bucket_width": width, "limit": MAX_BUCKETS, "modality": ",".join([*ROUTES, "text"])}
        lists = {"group_by": ",".join(groups), "percentiles": ",".join(percentiles)}
        asked |= {name: value for name, value in lists.items() if value}
        return list(self._json("GET", "/v1/usage/summary", params=asked)["data"])

    # --- how ---

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with self._asked(method, path, **options) as response:
            response.read()
            found: dict[str, Any] = response.json()
        return found

    @contextmanager
    def _asked(self, method: str, path: str, *, is_checked: bool = True, **options: Any) -> Iterator[httpx.Response]:
        """Ask; give the answer before its body is read.

        Raises:
            Problem: nothing answers, it says no, or it broke off.
        """
        headers = {**({"authorization": f"Bearer {self.key}"} if self.key else {}), **options.pop("headers", {})}
        try:
            with self.http.stream(method, f"{base_of(self.url)}{path}", headers=headers, **options) as response:
                if is_checked:
                    check(response)
                yield response
        except httpx.ReadTimeout as error:
            raise TooSlow("The gateway takes long to answer. Try again in a moment.") from error
        except (httpx.HTTPError, httpx.InvalidURL, json.JSONDecodeError) as error:
            raise no_answer(self.url, error) from error


def base_of(url: str) -> str:
    """The gateway's address, also where somebody gives it as the SDK takes it."""
    return url.rstrip("/").removesuffix("/v1")
