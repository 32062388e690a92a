"""Random and boundary requests of the OpenAPI document: what is sent, and what no answer may be."""

from collections.abc import Iterator, Mapping
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance]
# What is valid and would take long is made short; what is not valid stays as it is.
MOST = {
    "num_inference_steps": (200, 3),
    "num_frames": (161, 5),
    "n": (10, 2),
    "max_tokens": (131_072, 8),
    "max_completion_tokens": (131_072, 8),
    "max_output_tokens": (131_072, 8),
    "grid_size": (192, 16),
}
LONG_TEXTS = ("input", "prompt")
# What no caller can cause, and what an operator has left out; all else of 5xx is a failure.
EXPECTED = {"provider_not_configured", "deadline_exceeded"}


def tamed(value: Any, name: str = "") -> Any:
    """Make short what would take long."""
    if isinstance(value, dict):
        return {each: tamed(part, str(each)) for each, part in value.items()}
    if isinstance(value, list):
        return [tamed(part, name) for part in value]
    limit, cap = MOST.get(name, (0, 0))
    if isinstance(value, int) and not isinstance(value, bool) and cap < value <= limit:
        return cap
    if name in LONG_TEXTS and isinstance(value, str) and 60 < len(value) <= 4096:
        return value[:60]
    return value


def complaints(url: str, key: str, num_examples: int, ids: Mapping[str, str]) -> Iterator[str]:
    """Ask every route so many times, and say what is not as the document says.

    Args:
        url: of the gateway.
        key: of an admin.
        num_examples: of each route.
        ids: of things that there are, by the names of path parameters.
    """
    document = requests.get(f"{url}/openapi.json", timeout=60).json()
    schema = schemathesis.openapi.from_dict(document)
    with requests.Session() as session:
        session.headers["authorization"] = f"Bearer {key}"
        for result in schema.get_all_operations():
            assert isinstance(result, Ok), result.err()  # the document itself is wrong
            yield from told(result.ok(), url, session, num_examples, ids)


def told(operation: Any, url: str, session: requests.Session, num_examples: int, ids: Mapping[str, str]) -> list[str]:
    found: dict[str, str] = {}

    @seed(7)
    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), is_there=strategies.booleans())
    def ask(case: Any, is_there: bool) -> None:
        case.body = tamed(case.body)
        if is_there and operation.method != "delete":
            case.path_parameters |= {name: there for name, there in ids.items() if name in case.path_parameters}
        response = case.call(base_url=url, session=session, timeout=120)
        for complaint in of_response(case, response):
            found.setdefault(complaint, f"{operation.label}: {complaint}\n  {case.as_curl_command()[:600]}")

    ask()
    return list(found.values())


def of_response(case: Any, response: Any) -> Iterator[str]:
    """Say what is wrong with an answer."""
    text = response.content.decode(errors="replace")
    if response.status_code >= 400:
        error = envelope_of(response)
        if error is None:
            yield f"{response.status_code} in no envelope: {text[:200]}"
        elif response.status_code >= 500 and error["code"] not in EXPECTED:
            yield f"{response.status_code} {error['code']}: {error['message'][:200]}"
    if "Traceback" in text or 'File "' in text:
        yield f"a traceback: {text[:300]}"
    try:
        case.validate_response(response, checks=CHECKS)
    except FailureGroup as failures:
        for failure in failures.exceptions:
            yield f"{response.status_code}: {str(failure)[:300]}"
    except Failure as failure:
        yield f"{response.status_code}: {str(failure)[:300]}"


def envelope_of(response: Any) -> Mapping[str, Any] | None:
    """The error in an answer; None: there is none."""
    try:
        body = response.json()
    except ValueError:
        return None
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) and set(error) == {"message", "type", "param", "code"} else None
