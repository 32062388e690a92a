"""The page about the SDK says what was found."""

import httpx
import openai

from tests.conformance.conftest import Found
from tests.conformance.parameters import METHODS, Fates, contract_of, fates
from tests.conformance.table import PAGE, page
from tests.conformance.test_errors import ERRORS
from tests.live.conftest import System


def fates_of_all(system: System, sdk: openai.OpenAI) -> dict[str, Fates]:
    document = httpx.get(f"{system.gateway}/openapi.json").json()
    return {method.name: fates(sdk, method, contract_of(document, method.path)) for method in METHODS}


def test_the_page_is_what_was_found(system: System, sdk: openai.OpenAI, found: Found) -> None:
    now = page(found, fates_of_all(system, sdk), ERRORS)
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    PAGE.write_text(now, encoding="utf-8")

    assert before == now, f"{PAGE.name} was stale and has been written anew; look at what has changed, and commit it"
