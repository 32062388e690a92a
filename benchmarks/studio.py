"""How long the studio takes until a browser that has never been there shows it.

`python -m benchmarks.studio [URL] [runs]`: of a `make up` that runs; needs Debian's `chromium`.
"""

import sys
from statistics import median

from playwright.sync_api import Browser, expect

from tests.live.browsing import LONG, chromium

URL = "http://127.0.0.1:8501"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def visit_once(browser: Browser, url: str) -> tuple[float, float]:
    """Return milliseconds until the first paint, and until something can be asked for."""
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url, wait_until="commit")
        expect(page.get_by_label("Ask something")).to_be_enabled(timeout=LONG)
        return page.evaluate(PAINTED), page.evaluate("performance.now()")


def main() -> None:
    """Measure; the first visit, at which the studio reads its own modules, is told apart."""
    url = sys.argv[1] if len(sys.argv) > 1 else URL
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    with chromium() as browser:
        first = visit_once(browser, url)
        painted, usable = zip(*(visit_once(browser, url) for _ in range(runs)), strict=True)
    print("first visit: painted after {:.0f} ms, usable after {:.0f} ms".format(*first))  # noqa: T201
    for name, found in (("painted", painted), ("usable", usable)):
        print(f"{name}: median {median(found):.0f} ms, longest of {runs} {max(found):.0f} ms")  # noqa: T201


if __name__ == "__main__":
    main()
