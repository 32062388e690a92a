"""The texts in a file's metadata, by its format; knows neither what they mean nor who wrote them.

A stranger's file may be broken, cut off or made to be a nuisance: what cannot be read is passed over, and of parts and
bytes only so many are looked at. Compressed texts are none of ours, and are not unpacked.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["image", "audio", "video", "mesh"]
Text = tuple[str, str]  # its name, in lower case, and what it says
Reader = Callable[[bytes], Iterator[Text]]

MAX_PARTS = 4_000  # of a file
MAX_TEXT = 100_000  # bytes of one
EXIF, XMP = "exif", "xmp"
DESCRIPTION = 0x010E  # the tag of EXIF
JPEG_SCAN = 0xDA
COMMENT_BOX = b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data"


@dataclass(frozen=True)
class Format:
    """How a kind of file begins, and how its texts are found."""

    media_type: str
    kind: Kind
    is_so: Callable[[bytes], bool]
    texts: Reader


def format_of(data: bytes) -> Format | None:
    """Tell a file's format by how it begins; None: it is none that is known here."""
    return next((known for known in FORMATS if known.is_so(data)), None)


def png(data: bytes) -> Iterator[Text]:
    """Texts of PNG: `tEXt`, and `iTXt` that is not compressed. Source: W3C, PNG 3, 11.3.3."""
    at = 8
    for _ in range(MAX_PARTS):
        length, name = number(data, at, "big"), data[at + 4 : at + 8]
        content = data[at + 8 : at + 8 + min(length, MAX_TEXT)]
        key, _, rest = content.partition(b"\0")
        if name == b"tEXt":
            yield key.decode("latin-1").lower(), rest.decode("latin-1")
        elif name == b"iTXt" and rest[:1] == b"\0":
            yield written(key).lower(), written(rest[2:].split(b"\0", 2)[-1])
        at += 12 + length
        if at >= len(data):
            return


def jpeg(data: bytes) -> Iterator[Text]:
    """EXIF and XMP of JPEG, both in segments of the kind APP1. Source: ITU T.81, B.1.1."""
    at = 2
    for _ in range(MAX_PARTS):
        if data[at : at + 1] != b"\xff" or data[at + 1 : at + 2] in (b"", bytes([JPEG_SCAN])):
            return
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : at + 2 + length]
        if data[at + 1] == 0xE1 and content.startswith(b"Exif\0\0"):
            yield from exif(content[6:])
        elif data[at + 1] == 0xE1 and content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            yield XMP, written(content[29:])
        at += 2 + max(length, 2)


def webp(data: bytes) -> Iterator[Text]:
    """EXIF and XMP of WebP."""
    for name, content in riff(data):
        if name == b"EXIF":
            yield from exif(content.removeprefix(b"Exif\0\0"))
        elif name == b"XMP ":
            yield XMP, written(content)


def wav(data: bytes) -> Iterator[Text]:
    """The list of texts of WAV. Source: RIFF (Microsoft, 1991)."""
    for name, content in riff(data):
        if name == b"LIST" and content.startswith(b"INFO"):
            for key, text in chunks(content, 4):
                yield written(key).lower(), written(text.rstrip(b"\0"))


def gif(data: bytes) -> Iterator[Text]:
    """Comments of GIF. Source: GIF89a, 24."""
    at = 13 + table(data[10:11])
    for _ in range(MAX_PARTS):
        match data[at : at + 1]:
            case b"!":
                content, end = blocks(data, at + 2)
                if data[at + 1 : at + 2] == b"\xfe":
                    yield "comment", written(content)
                at = end
            case b",":
                _, at = blocks(data, at + 11 + table(data[at + 9 : at + 10]))
            case _:
                return


def id3(data: bytes) -> Iterator[Text]:
    """Texts of ID3v2 in front of MP3 or AAC. Source: id3.org, ID3v2.4.0."""
    if not data.startswith(b"ID3") or len(data) < 10:
        return
    version, size = data[3], synchsafe(data[6:10])
    at, end = 10, min(10 + size, len(data))
    for _ in range(MAX_PARTS):
        name = data[at : at + 4]
        if at + 10 > end or not name.strip(b"\0"):
            return
        length = synchsafe(data[at + 4 : at + 8]) if version >= 4 else number(data, at + 4, "big")
        content = data[at + 10 : min(at + 10 + length, end)][:MAX_TEXT]
        encoding = {0: "latin-1", 1: "utf-16", 2: "utf-16-be"}.get(content[0] if content else 3, "utf-8")
        text = content[4 if name == b"COMM" else 1 :].decode(encoding, "replace")
        if name in (b"TXXX", b"COMM"):
            key, _, value = text.rstrip("\0").partition("\0")
            yield ("comment" if name == b"COMM" else key.lower()), value
        elif name.startswith(b"T"):
            yield written(name).lower(), text.rstrip("\0")
        at += 10 + length


def opus(data: bytes) -> Iterator[Text]:
    """Texts of Ogg Opus: those of its second packet. Source: RFC 3533, 6, and RFC 7845, 5.2."""
    packet, at, num_packets = b"", 0, 0
    for _ in range(MAX_PARTS):
        if data[at : at + 4] != b"OggS" or len(data) < at + 27:
            return
        lacing = data[at + 27 : at + 27 + data[at + 26]]
        at += 27 + len(lacing)
        for length in lacing:
            packet += data[at : at + length]
            at += length
            if len(packet) > MAX_TEXT:
                return
            if length < 255:
                num_packets += 1
                if num_packets == 2:
                    yield from vorbis(packet.removeprefix(b"OpusTags"))
                    return
                packet = b""


def flac(data: bytes) -> Iterator[Text]:
    """Texts of FLAC. Source: RFC 9639, 8.6."""
    at = 4
    for _ in range(MAX_PARTS):
        kind, length = data[at : at + 1], int.from_bytes(data[at + 1 : at + 4], "big")
        if not kind:
            return
        if kind[0] & 0x7F == 4:
            yield from vorbis(data[at + 4 : at + 4 + length])
        if kind[0] & 0x80:
            return
        at += 4 + length


def mp4(data: bytes) -> Iterator[Text]:
    """The comment of MP4, as Apple's players have it. Source: ISO 14496-12, 8.10."""
    found = data
    for name in COMMENT_BOX:
        found = next((content for each, content in boxes(found) if each == name), b"")
        if name == b"meta":
            found = found[4:]  # its version
    yield "comment", written(found[8:])


def glb(data: bytes) -> Iterator[Text]:
    """The document of binary glTF. Source: Khronos, glTF 2.0, 4.4."""
    length = number(data, 12, "little")
    if data[16:20] == b"JSON" and length <= MAX_TEXT:
        yield "gltf", written(data[20 : 20 + length])


def comments(data: bytes) -> Iterator[Text]:
    """Comments at the head of PLY or OBJ, one a line."""
    for line in data[:MAX_TEXT].split(b"\n", MAX_PARTS)[:-1]:
        mark, _, text = line.strip().partition(b" ")
        if mark == b"end_header":
            return
        if mark in (b"comment", b"#"):
            yield "comment", written(text)


def exif(data: bytes) -> Iterator[Text]:
    """The description of a picture, in EXIF. Source: TIFF 6.0, 2."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    at = number(data, 4, order)
    for place in range(at + 2, at + 2 + 12 * int.from_bytes(data[at : at + 2], order), 12)[:MAX_PARTS]:
        if int.from_bytes(data[place : place + 2], order) == DESCRIPTION:
            length = min(number(data, place + 4, order), MAX_TEXT)
            start = place + 8 if length <= 4 else number(data, place + 8, order)
            yield EXIF, written(data[start : start + length].rstrip(b"\0"))


def vorbis(data: bytes) -> Iterator[Text]:
    """Texts of a comment as Vorbis has it. Source: xiph.org, Ogg Vorbis comment field."""
    at = 4 + number(data, 0, "little")
    how_many = number(data, at, "little")
    at += 4
    for _ in range(min(how_many, MAX_PARTS)):
        length = number(data, at, "little")
        if at >= len(data):
            return
        key, _, text = data[at + 4 : at + 4 + min(length, MAX_TEXT)].partition(b"=")
        name = written(key).lower()
        yield ("comment" if name == "description" else name), written(text)  # as FFmpeg calls it there
        at += 4 + length


def riff(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Chunks of RIFF with at most `MAX_TEXT` bytes of each."""
    return chunks(data, 12)


def chunks(data: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """Chunks from a place on."""
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        length = number(data, at + 4, "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + min(length, MAX_TEXT)]
        at += 8 + length + length % 2


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Boxes of MP4."""
    at = 0
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return
        length, head = number(data, at, "big"), 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        length = len(data) - at if length == 0 else length
        if length < head:
            return
        yield data[at + 4 : at + 8], data[at + head : at + length]
        at += length


def blocks(data: bytes, at: int) -> tuple[bytes, int]:
    """The first bytes of what a GIF has in blocks, and where they end."""
    content = bytearray()
    while at < len(data) and data[at]:
        if len(content) < MAX_TEXT:
            content += data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
    return bytes(content), at + 1


def table(flags: bytes) -> int:
    """Bytes of a GIF's table of colours."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def synchsafe(data: bytes) -> int:
    """A number of seven bits a byte."""
    value = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
    return value


def number(data: bytes, at: int, order: Literal["little", "big"]) -> int:
    """A number of four bytes, or of those that are left."""
    return int.from_bytes(data[at : at + 4], order)


def written(text: bytes) -> str:
    """Read text."""
    return text[:MAX_TEXT].decode("utf-8", "replace")


def begins(*signatures: bytes) -> Callable[[bytes], bool]:
    """Whether a file begins so."""
    return lambda data: data.startswith(signatures)


def is_riff(form: bytes) -> Callable[[bytes], bool]:
    """Whether a file is RIFF of this form."""
    return lambda data: data[:4] == b"RIFF" and data[8:12] == form


FORMATS: tuple[Format, ...] = (
    Format("image/png", "image", begins(b"\x89PNG\r\n\x1a\n"), png),
    Format("image/jpeg", "image", begins(b"\xff\xd8\xff"), jpeg),
    Format("image/webp", "image", is_riff(b"WEBP"), webp),
    Format("image/gif", "image", begins(b"GIF87a", b"GIF89a"), gif),
    Format("audio/wav", "audio", is_riff(b"WAVE"), wav),
    Format("audio/mpeg", "audio", begins(b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf1", b"\xff\xf9"), id3),
    Format("audio/ogg", "audio", begins(b"OggS"), opus),
    Format("audio/flac", "audio", begins(b"fLaC"), flac),
    Format("video/mp4", "video", lambda data: data[4:8] == b"ftyp", mp4),
    Format("model/gltf-binary", "mesh", begins(b"glTF"), glb),
    Format("model/ply", "mesh", begins(b"ply\n", b"ply\r\n"), comments),
    Format("model/obj", "mesh", begins(b"# ", b"v ", b"o ", b"mtllib "), comments),
)
