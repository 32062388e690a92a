"""A client's picture: bytes in, an upright RGB image out; trusts nothing, and knows neither HTTP nor models."""

import re
from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

MAX_ASPECT = 100  # longer side to shorter
MAX_SIDE = 1024  # pixels, of a picture that a model will look at in far fewer
MAX_SCANS = 100  # a progressive JPEG has about ten; 31 bytes more ask for one more pass over every pixel

# The readers themselves instead of Image.open, which warns about large pictures before anyone can look at their size.
PNG_END, GIF_END = b"IEND\xaeB`\x82", b"\0;"
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"

READERS: tuple[tuple[re.Pattern[bytes], type[ImageFile.ImageFile]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"BM"), BmpImageFile),
)
TURNS = {  # the EXIF orientation, and what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PictureError(ValueError):
    """The picture is refused; the message is a sentence for the client."""


def read(data: bytes, max_pixels: int) -> Image.Image:
    """Return the picture in a PNG, JPEG, WebP, GIF or BMP file: RGB, upright, transparency on white.

    Of an animation it is the first frame. The size is checked before any pixel is decoded.

    Raises:
        PictureError: another format, a size that is not allowed, or a file that is broken, cut off or a bomb.
    """
    return _decode(data, max_pixels, _flat)


def read_mask(data: bytes, max_pixels: int) -> Image.Image:
    """Return the mask in such a file, L: white where it is transparent, or white if nothing in it is.

    Raises:
        PictureError: as in `read`.
    """
    return _decode(data, max_pixels, _mask)


def fitting(size: str) -> Callable[[Image.Image], Image.Image]:
    """Return what crops a picture to the aspect ratio of a size such as `"512x384"`, and scales it."""
    width, height = size.split("x")
    return partial(ImageOps.fit, size=(int(width), int(height)))


def reduced(image: Image.Image) -> Image.Image:
    """Scale a picture down, if need be, to a longer side of 1024 pixels; may change `image` itself."""
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def _decode(data: bytes, max_pixels: int, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    reader = next((reader for signature, reader in READERS if signature.match(data)), None)
    if reader is None:
        raise PictureError("The file is not a PNG, JPEG, WebP, GIF or BMP picture.")
    if reader is JpegImageFile and data.count(JPEG_SCAN) > MAX_SCANS:
        raise PictureError(f"The picture is stored in more than {MAX_SCANS} passes.")
    try:
        picture = reader(BytesIO(data))
        _check_size(*picture.size, max_pixels)
        picture.load()
        _check_end(reader, data)
        return _upright(convert(picture), picture.getexif().get(ExifTags.Base.Orientation))
    except PictureError:
        raise
    except Exception as error:  # a decoder that strangers feed fails in every way there is
        raise PictureError("The picture is broken or incomplete.") from error


def _check_end(reader: type[ImageFile.ImageFile], data: bytes) -> None:
    """Raise where a file's end mark is missing: Pillow is content with all the pixels, or nearly all."""
    if reader is PngImageFile:
        has_end = PNG_END in data
    elif reader is JpegImageFile:
        has_end = data.find(JPEG_END, data.rfind(JPEG_SCAN)) >= 0
    else:
        has_end = reader is not GifImageFile or GIF_END in data[-16:]
    if not has_end:
        raise ValueError("the end is missing")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PictureError(f"The picture has {width} x {height} pixels, and at most {max_pixels} are allowed.")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise PictureError(f"The picture has {width} x {height} pixels: one side is over {MAX_ASPECT} times the other.")


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    if orientation in TURNS:
        image = image.transpose(TURNS[orientation])
    image.info.clear()  # else whoever reads the orientation next turns it again
    return image


def _mask(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data:
        return ImageChops.invert(picture.convert("RGBA").getchannel("A"))
    return _flat(picture).convert("L")


def _flat(picture: Image.Image) -> Image.Image:
    if picture.mode == "I;16":  # 16-bit grey, which convert() would clip at 255 instead of scaling
        levels = np.asarray(picture)
        grey = (levels >> 8).astype(np.uint8)
        grey[levels == picture.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    white.alpha_composite(layer)
    return white.convert("RGB")
