"""File names for downloads, from text that a stranger wrote. Source: RFC 6266 and RFC 8187."""

import re
import unicodedata
from urllib.parse import quote

FORBIDDEN = re.compile(r'[\\/:*?"<>|%;]|\s+')  # what some system does not allow in a name, or reads as syntax
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\.|\Z)")  # Windows keeps them, whatever the extension
MAX_LENGTH = 60  # characters; as UTF-8 well under the 255 bytes that file systems take


def attachment(title: str, extension: str) -> str:
    """A `Content-Disposition` that saves under a name made from `title`, in any language.

    Old readers get an ASCII name, all others the whole one.
    """
    stem = safe_stem(title)
    # Made safe again: taken apart, a full-width quotation mark or slash is a plain one.
    ascii_stem = safe_stem(unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode())
    return f"attachment; filename=\"{ascii_stem}.{extension}\"; filename*=UTF-8''{quote(stem, safe='')}.{extension}"


def safe_stem(title: str) -> str:
    """`title` as a file name without its extension, safe on every system."""
    printable = "".join(c for c in FORBIDDEN.sub(" ", title) if unicodedata.category(c)[0] != "C")
    stem = " ".join(printable.split())[:MAX_LENGTH].strip(" ._-")
    return f"_{stem}" if RESERVED.match(stem) else stem or "download"
