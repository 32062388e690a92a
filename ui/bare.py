"""Speech as samples alone, as a WAV for players, which need a head; knows no route and no widget."""

import re
import struct
from collections.abc import AsyncIterator

import httpx

MEDIA_TYPE = "audio/pcm"
SAMPLE_RATE = 24_000  # samples a second, of 16 bits: OpenAI's
UNKNOWN = 0xFFFFFFFF  # a size that players read as "until the end"
HEAD = 44  # bytes
RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{0,18})")


def wav(samples: bytes) -> bytes:
    """Return samples as a file that is played."""
    return head(len(samples)) + samples


def head(num_bytes: int | None) -> bytes:
    """Return what stands before so many bytes of samples; None: their end is not known yet."""
    riff, data = (UNKNOWN, UNKNOWN) if num_bytes is None else (num_bytes + HEAD - 8, num_bytes)
    kind = struct.pack("<HHIIHH", 1, 1, SAMPLE_RATE, SAMPLE_RATE * 2, 2, 16)
    return struct.pack("<4sI8sI16s4sI", b"RIFF", riff, b"WAVEfmt ", len(kind), kind, b"data", data)


def beneath(asked: str) -> str:
    """Return which range of the samples has what a range of the WAV has; empty: all of it."""
    found = RANGE.fullmatch(asked)
    if found is None:
        return ""
    first, last = found.groups()
    return f"bytes={max(int(first) - HEAD, 0)}-{max(int(last) - HEAD, 0) if last else ''}"


def as_wav(samples: httpx.Response, asked: str) -> tuple[dict[str, str], AsyncIterator[bytes]]:
    """Return headers and pieces of a WAV, or of the range of it that is `asked` for, from what is `beneath` that."""
    headers = {"content-type": "audio/wav"}
    found = RANGE.fullmatch(asked)
    if found is None or samples.status_code != httpx.codes.PARTIAL_CONTENT:
        length = samples.headers.get("content-length")
        num_bytes = None if length is None else int(length)
        if num_bytes is not None:
            headers |= {"content-length": str(HEAD + num_bytes), "accept-ranges": "bytes"}
        return headers, joined(head(num_bytes), samples.aiter_raw())
    num_bytes = int(samples.headers["content-range"].rpartition("/")[2])
    end = HEAD + num_bytes
    first, last = int(found[1]), min(int(found[2] or end), end - 1)
    headers |= {
        "content-length": str(last + 1 - first),
        "content-range": f"bytes {first}-{last}/{end}",
        "accept-ranges": "bytes",
    }
    start = head(num_bytes)[first : last + 1]
    return headers, joined(start, samples.aiter_raw()) if last >= HEAD else joined(start)


async def joined(start: bytes, *others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the beginning, then what follows."""
    yield start
    for each in others:
        async for piece in each:
            yield piece
