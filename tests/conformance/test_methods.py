"""Every method of the SDK that Atelier serves, with both clients."""

import openai
import pytest

from tests.conformance.calls import CALLS, UNSERVED
from tests.conformance.conftest import KINDS, Found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [call.name for call in CALLS])
def test_a_method_works(found: Found, name: str, kind: str) -> None:
    error = found[name, kind]
    if error is not None:
        raise error


@pytest.mark.parametrize("method", UNSERVED)
def test_what_is_not_served_is_not_found_in_the_envelope(sdk: openai.OpenAI, method: str) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no route") as refusal:
        UNSERVED[method](sdk)

    assert (refusal.value.type, refusal.value.code) == ("invalid_request_error", "not_found")
