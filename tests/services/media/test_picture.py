import re
import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from services.media import picture

MAX_PIXELS = 64 * 64
FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]
LEAKS = re.compile(r"PIL|Pillow|zlib|libjpeg|webp_|decompress|/|\\|0x|\bplugin", re.IGNORECASE)

SCENE = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(6, axis=0).repeat(6, axis=1)
)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


FILES = {
    **{kind: save(SCENE, kind) for kind in FORMATS},
    "progressive JPEG": save(SCENE, "JPEG", progressive=True),
    "lossless WebP": save(SCENE.convert("RGBA"), "WEBP", lossless=True),
    "palette PNG": save(SCENE.quantize(16), "PNG"),
    "animated GIF": save(SCENE, "GIF", save_all=True, append_images=[SCENE.rotate(180)]),
    "animated PNG": save(SCENE, "PNG", save_all=True, append_images=[SCENE.rotate(180)]),
    "animated WebP": save(SCENE, "WEBP", save_all=True, append_images=[SCENE.rotate(180)]),
}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *extra: bytes, pixels: bytes | None = None, after: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = bytes((width * 3 + 1) * height) if pixels is None else pixels
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + after + chunk(b"IEND", b"")


def patch(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


def refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(picture.PictureError) as caught:
        picture.read(data, max_pixels)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert not LEAKS.search(sentence)
    return sentence


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean())


@pytest.mark.parametrize("kind", FILES)
def test_a_picture_comes_back_as_rgb(kind: str) -> None:
    read = picture.read(FILES[kind], MAX_PIXELS)

    assert (read.mode, read.size) == ("RGB", SCENE.size)
    assert difference(read, SCENE) < (1 if kind in {"PNG", "BMP", "animated PNG", "lossless WebP"} else 40)


@pytest.mark.parametrize("kind", ["animated GIF", "animated PNG", "animated WebP"])
def test_of_an_animation_it_is_the_first_frame(kind: str) -> None:
    read = picture.read(FILES[kind], MAX_PIXELS)

    assert difference(read, SCENE) < difference(read, SCENE.rotate(180)) / 2


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "ICNS", "PDF", "EPS", "AVIF", "JPEG2000"])
def test_no_other_format_is_read(kind: str) -> None:
    assert refusal(save(SCENE, kind)) == "The file is not a PNG, JPEG, WebP, GIF or BMP picture."


@pytest.mark.parametrize("data", [b"", b"\x00", b"hello", b"RIFF\x00\x00\x00\x00WAVEfmt ", b"GIF88a"])
def test_what_is_no_picture_is_called_so(data: bytes) -> None:
    assert refusal(data) == "The file is not a PNG, JPEG, WebP, GIF or BMP picture."


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_camera_held_otherwise_still_gives_an_upright_picture(kind: str, orientation: int) -> None:
    turned = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.rotate(180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(90, expand=True),
        6: lambda image: image.rotate(90, expand=True),
        7: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(-90, expand=True),
        8: lambda image: image.rotate(-90, expand=True),
    }[orientation](SCENE)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = save(turned, kind, exif=exif)

    read = picture.read(data, MAX_PIXELS)

    assert read.size == SCENE.size
    assert difference(read, SCENE) < 25
    assert not read.getexif()
    assert not read.info


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation

    assert difference(picture.read(save(SCENE, "PNG", exif=exif), MAX_PIXELS), SCENE) == 0


def test_transparency_is_seen_on_white() -> None:
    see_through = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    grey = Image.new("LA", (8, 8), (0, 51))

    colours = [picture.read(save(image, "PNG"), 64).getpixel((3, 3)) for image in (see_through, half, grey)]

    assert colours == [(255, 255, 255), (255, 127, 127), (204, 204, 204)]


TWO_COLOURS = Image.new("P", (8, 8), 1)
TWO_COLOURS.putpalette([0, 0, 0, 9, 9, 9])


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (TWO_COLOURS, {"transparency": 1}),
        (TWO_COLOURS, {"transparency": b"\xff\x00"}),
        (Image.new("L", (8, 8), 7), {"transparency": 7}),
        (Image.new("1", (8, 8), 0), {"transparency": 0}),
        (Image.new("RGB", (8, 8), (1, 2, 3)), {"transparency": (1, 2, 3)}),
        (Image.fromarray(np.full((8, 8), 12_345, np.uint16)), {"transparency": 12_345}),
    ],
    ids=["index", "palette", "grey", "bit", "colour", "16 bit"],
)
def test_a_colour_that_stands_for_nothing_is_white(image: Image.Image, options: dict[str, Any]) -> None:
    assert picture.read(save(image, "PNG", **options), 64).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_every_way_to_store_black_and_white_reads_the_same(kind: str, mode: str) -> None:
    board = Image.fromarray(np.indices((8, 8)).sum(axis=0).astype(np.uint8) % 2 * 255)

    assert difference(picture.read(save(board.convert(mode), kind), 64), board.convert("RGB")) == 0


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    levels = np.linspace(0, 65_535, 64, dtype=np.uint16).reshape(8, 8)

    read = picture.read(save(Image.fromarray(levels), "PNG"), 64)

    assert (np.asarray(read) == (levels >> 8)[:, :, None]).all()


def test_printing_colours_become_screen_colours() -> None:
    data = save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)

    red, green, blue = np.asarray(picture.read(data, 64))[3, 3]

    assert red > 240
    assert max(green, blue) < 20


@pytest.mark.parametrize(
    "data",
    [
        png(60_000, 60_000, pixels=b""),
        png(0x7FFFFFFF, 1, pixels=b""),
        png(1, 0x7FFFFFFF, pixels=b""),
        png(0xFFFFFFFF, 0xFFFFFFFF, pixels=b""),
        png(10_000, 10_000, pixels=b""),  # large enough for a warning, not for an error
        patch(FILES["GIF"], 6, struct.pack("<HH", 9_000, 9_000)),
        patch(FILES["BMP"], 18, struct.pack("<ii", 60_000, -60_000)),
        patch(FILES["JPEG"], FILES["JPEG"].index(b"\xff\xc0") + 5, struct.pack(">HH", 60_000, 60_000)),
        patch(FILES["animated WebP"], 24, b"\xff\x1f\x00\xff\x1f\x00"),
    ],
    ids=["square", "wide", "high", "largest", "warned", "GIF", "BMP", "JPEG", "WebP"],
)
def test_a_bomb_is_refused_by_its_header(data: bytes) -> None:
    assert re.fullmatch(r"The picture has \d+ x \d+ pixels, and at most 4096 are allowed\.", refusal(data))


@pytest.mark.parametrize("kind", FILES)
def test_the_limit_is_the_largest_size_allowed(kind: str) -> None:
    assert picture.read(FILES[kind], 48 * 36).size == (48, 36)
    assert refusal(FILES[kind], 48 * 36 - 1).startswith("The picture has 48 x 36 pixels")


def test_a_thread_is_no_picture() -> None:
    assert picture.read(png(100, 1), MAX_PIXELS).size == (100, 1)
    assert refusal(png(101, 1)) == "The picture has 101 x 1 pixels: one side is over 100 times the other."
    assert refusal(png(1, 101)) == "The picture has 1 x 101 pixels: one side is over 100 times the other."


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_a_picture_of_nothing_is_refused(kind: str, width: int, height: int) -> None:
    empty = {
        "PNG": png(width, height, pixels=b""),
        "GIF": b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, width, height, 0)
        + b"\x02\x02\x4c\x01\x00;",
        "BMP": patch(FILES["BMP"], 18, struct.pack("<ii", width, height)),
    }[kind]

    assert refusal(empty) == "The picture is broken or incomplete."


@pytest.mark.parametrize("num_lost", [1, 2, 12])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive JPEG", "GIF", "lossless WebP"])
def test_a_picture_without_its_end_is_refused(kind: str, num_lost: int) -> None:
    assert picture.read(FILES[kind], MAX_PIXELS).size == SCENE.size
    assert refusal(FILES[kind][:-num_lost]) == "The picture is broken or incomplete."


HUGE = zlib.compress(bytes(3 << 20), 9)
TEXTS = {
    "profile": chunk(b"iCCP", b"name\0\0" + HUGE),
    "text": chunk(b"zTXt", b"name\0\0" + HUGE),
    "international": chunk(b"iTXt", b"name\0\1\0\0\0" + HUGE),
    "many": chunk(b"zTXt", b"name\0\0" + zlib.compress(bytes(1 << 20), 9)) * 65,
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_bomb_beside_the_pixels_is_refused(text: str, where: str) -> None:
    small = png(8, 8, TEXTS[text]) if where == "before" else png(8, 8, after=TEXTS[text])

    assert refusal(small) == "The picture is broken or incomplete."


def test_a_progressive_picture_cannot_ask_for_passes_without_end() -> None:
    data = FILES["progressive JPEG"]
    scan = data[data.rfind(b"\xff\xda") : -2]

    assert picture.read(data[:-2] + scan * 50 + data[-2:], MAX_PIXELS).size == SCENE.size
    assert refusal(data[:-2] + scan * 200 + data[-2:]) == "The picture is stored in more than 100 passes."


def test_the_bytes_that_start_a_pass_may_be_pixels_elsewhere() -> None:
    colour = (255, 218, 255)

    assert picture.read(save(Image.new("RGB", (20, 20), colour), "BMP"), 400).getpixel((3, 3)) == colour


@pytest.mark.parametrize("kind", FILES)
def test_half_a_file_does_not_look_whole(kind: str) -> None:
    data, whole = FILES[kind], picture.read(FILES[kind], MAX_PIXELS)

    for length in range(len(data)):
        try:
            cut = picture.read(data[:length], MAX_PIXELS)
        except picture.PictureError:
            continue
        assert cut.tobytes() == whole.tobytes(), f"cut at {length} of {len(data)}"


@given(st.sampled_from(sorted(FILES)), st.data())
@settings(deadline=None, max_examples=400)
def test_whatever_a_client_sends_is_a_picture_or_a_sentence(kind: str, data: st.DataObject) -> None:
    broken = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(broken) - 1))
        broken[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))

    try:
        read = picture.read(bytes(broken), MAX_PIXELS)
    except picture.PictureError as error:
        assert not LEAKS.search(str(error))  # noqa: PT017 - it may as well be a picture still
    else:
        assert read.mode == "RGB"
        assert read.width * read.height <= MAX_PIXELS


@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF....WEBPVP8 ", b""]), st.binary()
)
@settings(deadline=None)
def test_noise_is_refused(start: bytes, noise: bytes) -> None:
    refusal(start + noise)


# --- masks ---


def mask_of(image: Image.Image, **options: Any) -> NDArray[np.uint8]:
    file = BytesIO()
    image.save(file, "PNG", **options)
    mask = picture.read_mask(file.getvalue(), MAX_PIXELS)
    assert mask.mode == "L"
    return np.asarray(mask)


def test_a_mask_is_white_where_it_is_transparent_whatever_its_colours() -> None:
    mask = Image.new("RGBA", (8, 4), (255, 255, 255, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 4, 4))

    assert (mask_of(mask)[:, :4] == 255).all()
    assert (mask_of(mask)[:, 4:] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_mask_without_transparency_is_what_it_shows(mode: str) -> None:
    mask = Image.new("L", (8, 4))
    mask.paste(255, (2, 0, 6, 4))

    assert np.array_equal(mask_of(mask.convert(mode)), np.asarray(mask))


def test_a_mask_is_turned_as_its_picture_is() -> None:
    mask = Image.new("RGBA", (8, 4), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 8, 1))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3

    assert (mask_of(mask, exif=exif)[3] == 255).all()


def test_what_is_no_mask_is_refused_as_a_picture_is() -> None:
    with pytest.raises(picture.PictureError, match="not a PNG"):
        picture.read_mask(b"no picture", MAX_PIXELS)


@pytest.mark.parametrize(
    ("size", "smaller"), [((4096, 2048), (1024, 512)), ((30, 2048), (15, 1024)), ((80, 60), (80, 60))]
)
def test_a_picture_is_reduced_to_what_a_model_looks_at(size: tuple[int, int], smaller: tuple[int, int]) -> None:
    assert picture.reduced(Image.new("RGB", size)).size == smaller


def test_a_picture_is_cropped_around_its_middle_and_scaled() -> None:
    striped = Image.new("RGB", (300, 100), "red")
    striped.paste("blue", (100, 0, 200, 100))
    made = picture.fitting("64x64")(striped)

    assert made.size == (64, 64)
    assert made.crop((2, 2, 62, 62)).getcolors() == [(60 * 60, (0, 0, 255))]
