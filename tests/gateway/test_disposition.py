"""Names for downloads: whatever the prompt, they parse back to one safe name."""

import re
from email.message import Message
from email.utils import collapse_rfc2231_value
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.disposition import attachment, safe_stem
from tests.gateway.conftest import Gateway, Workers

GRAMMAR = re.compile(r"attachment; filename=\"(?P<plain>[^\"\\]+)\"; filename\*=UTF-8''(?P<encoded>[A-Za-z0-9._~%-]+)")
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³")}


def names(header: str) -> tuple[str, str]:
    """The two names in the header: for old readers, and for all others."""
    match = GRAMMAR.fullmatch(header)
    assert match, header
    return match["plain"], unquote(match["encoded"], errors="strict")


def check_is_safe(name: str) -> None:
    stem, dot, extension = name.rpartition(".")
    assert (dot, extension) == (".", "obj")
    assert stem
    assert not set('\\/:*?"<>|%;\r\n\t\0') & set(name)
    assert name.isprintable()
    assert stem[0] not in " .-"
    assert stem[-1] not in " ."
    assert name.split(".")[0].lower() not in DEVICES
    assert len(name.encode()) <= 255


@settings(deadline=None)
@given(st.text(max_size=200))
@example("")
@example("...")
@example("猫" * 300)
@example("a cat; rm -rf /")
@example('cat"; filename="evil.exe')
@example("\uff02; filename=\uff02evil.exe")  # full-width quotation marks: plain ones, once taken apart
@example("\uff0fetc\uff0fpasswd")
@example("..\\..\\windows")
@example("cat\r\nset-cookie: a=b")
@example("cat\u2028\u2029\x85\x1b[31m")
@example("\u202egnp.exe")  # turns the writing direction round
@example("\ud800 lone")
@example("con")
@example("CON.txt")
@example("Cön")  # reserved, once it has lost its dots
@example("com¹")
@example("%2e%2e%2f")
@example("a" * 59 + " b")
@example("\U0001d571ancy 👩‍🚀")
def test_any_title_becomes_a_safe_name(title: str) -> None:
    header = attachment(title, "obj")

    plain, encoded = names(header)
    check_is_safe(plain)
    check_is_safe(encoded)
    assert plain.isascii()
    assert encoded == f"{safe_stem(title)}.obj"


@settings(deadline=None)
@given(st.text(max_size=80))
def test_other_readers_find_the_same_names(title: str) -> None:
    header = attachment(title, "obj")
    message = Message()
    message["content-disposition"] = header

    params = message.get_params(header="content-disposition") or []

    assert message.get_content_disposition() == "attachment"
    found = [collapse_rfc2231_value(value) for name, value in params if name == "filename"]
    assert tuple(found) == names(header)


@pytest.mark.parametrize(
    ("title", "plain", "encoded"),
    [
        ("a red chair", "a red chair", "a red chair"),
        ("Crème brûlée", "Creme brulee", "Crème brûlée"),
        ("椅子", "download", "椅子"),
        ("chair: the 2nd/best?", "chair the 2nd best", "chair the 2nd best"),
        ("  ..hidden.. ", "hidden", "hidden"),
        ("nul", "_nul", "_nul"),
        ("?!*", "!", "!"),
        ("/", "download", "download"),
    ],
)
def test_what_can_stay_stays(title: str, plain: str, encoded: str) -> None:
    assert names(attachment(title, "obj")) == (f"{plain}.obj", f"{encoded}.obj")


@pytest.mark.parametrize("prompt", ['"; filename="evil.exe', "\uff02\r\nset-cookie: a=b", "椅子"])
def test_a_mesh_comes_under_a_name_made_from_its_prompt(shared: tuple[Gateway, Workers], prompt: str) -> None:
    response = shared[0].client.get(f"/generate/3d?prompt={quote(prompt)}")
    assert response.headers["content-disposition"] == attachment(prompt, "obj")
    assert "set-cookie" not in response.headers
