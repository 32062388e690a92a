"""The page on which a key is given: a form of its own, as no script can read the cookie that it ends in."""

from html import escape
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from ui.visitors import COOKIE as VISITOR
from ui.visitors import RETIRED

COOKIE = "atelier_key"
PATH = "/key"
KEPT_SECONDS = 30 * 24 * 3600
MAX_CHARS = 512
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Key · Atelier</title>
<style>
:root {{ color-scheme: light dark; }}
html {{ background: Canvas; color: CanvasText; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 26rem; margin: 12vh auto; padding: 0 1.2rem; }}
input, button {{ font: inherit; padding: .55rem .8rem; border-radius: .5rem; border: 1px solid GrayText; }}
input {{ width: 100%; box-sizing: border-box; margin: .3rem 0 1rem; }}
button {{ cursor: pointer; }}
form {{ margin: 1rem 0; }}
p.wrong {{ border-left: .25rem solid #c62828; padding-left: .7rem; }}
</style>
</head>
<body>
<main>
<h1>Your key</h1>
{said}
<p>It is kept in a cookie of this browser for 30 days, and is sent with what you ask for.
<code>atelier keys create</code> makes one.</p>
<form method="post" action="/key">
<label for="key">Key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus placeholder="atl_…">
<button>Use this key</button>
</form>
<form method="post" action="/key/forget"><button>Forget the key</button></form>
<p><a href="/">Back to the studio</a></p>
</main>
</body>
</html>
"""


async def show_form(_: Request) -> Response:
    """Show the form; a key that was given before is not in it."""
    return page()


async def keep_key(request: Request) -> Response:
    """Put a key into the browser's cookie."""
    if not is_of_our_page(request):
        return PlainTextResponse("The form was not this page's own.", status_code=403)
    fields = parse_qs((await request.body()).decode(errors="replace"))
    key = fields.get("key", [""])[0].strip()
    if not (key and key.isascii() and key.isprintable() and len(key) <= MAX_CHARS) or set(key) & set(' ";,\\'):
        return page("That cannot be a key: it looks like atl_… and has no spaces.", status_code=400)
    change(request, key)
    response = RedirectResponse("/", status_code=303)
    response.set_cookie(
        COOKIE, key, max_age=KEPT_SECONDS, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return response


async def forget_key(request: Request) -> Response:
    """Take the cookie back."""
    if not is_of_our_page(request):
        return PlainTextResponse("The form was not this page's own.", status_code=403)
    change(request)
    response = RedirectResponse("/", status_code=303)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def change(request: Request, key: str = "") -> None:
    """Let the pages that are open have the browser's new key, or none, once they are loaded again, and not the old."""
    visitor, old = (request.cookies.get(name, "") for name in (VISITOR, COOKIE))
    RETIRED.add(visitor, old)
    RETIRED.discard(visitor, key)


def page(wrong: str = "", status_code: int = 200) -> Response:
    """Render the form."""
    said = f'<p class="wrong" role="alert">{escape(wrong)}</p>' if wrong else ""
    headers = {"content-security-policy": POLICY, "cache-control": "no-store", "referrer-policy": "same-origin"}
    return HTMLResponse(PAGE.format(said=said), status_code=status_code, headers=headers)


def is_of_our_page(request: Request) -> bool:
    """Whether a form was sent by this server's own page: another's may not choose in whose name somebody asks."""
    return urlsplit(request.headers.get("origin", "")).netloc == request.headers.get("host")
