"""What a browser really shows and plays, to be held against the files that were made; knows no page."""

import io
from base64 import b64decode
from typing import Any

import av
import numpy as np
import trimesh
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator

from tests.live.browsing import LONG

Pixels = NDArray[Any]  # of shape (height, width, 3), in [0, 1]

DRAWN = """shown => {
    const canvas = document.createElement("canvas");
    canvas.width = shown.naturalWidth || shown.videoWidth;
    canvas.height = shown.naturalHeight || shown.videoHeight;
    canvas.getContext("2d").drawImage(shown, 0, 0);
    return canvas.toDataURL("image/png").split(",")[1];
}"""
HEARD = """async player => {
    const content = await (await fetch(player.currentSrc)).arrayBuffer();
    const sound = await new OfflineAudioContext(1, 1, 48000).decodeAudioData(content);
    const samples = sound.getChannelData(0);
    return [sound.duration, Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length)];
}"""


def pixels_of(content: bytes) -> Pixels:
    """A picture, also of a screen."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float32) / 255


def drawn(shown: Locator) -> bytes:
    """What an image or a film shows at this instant, at its own size, as a PNG."""
    return b64decode(shown.evaluate(DRAWN))


def wait_for(shown: Locator, comes_true: str) -> None:
    """Wait until something is true of an element."""
    page = shown.page
    page.wait_for_function(comes_true, arg=shown.element_handle(), timeout=LONG)


def picture_differs(shown: Locator, made: bytes) -> float:
    """By how much an image differs from the file at most; 1 where it has another size."""
    wait_for(shown, "shown => shown.complete && shown.naturalWidth > 0")
    seen, wanted = pixels_of(drawn(shown)), pixels_of(made)
    return float(np.abs(seen - wanted).max()) if seen.shape == wanted.shape else 1.0


def frames_of(content: bytes) -> list[Pixels]:
    """The pictures of a film."""
    with av.open(io.BytesIO(content), "r") as film:
        return [frame.to_ndarray(format="rgb24").astype(np.float32) / 255 for frame in film.decode(video=0)]


def film_differs(shown: Locator, made: bytes) -> float:
    """By how much what a film shows differs from the nearest of the file's pictures, on average; it has to play."""
    wait_for(shown, "film => film.error || (film.readyState >= 2 && film.currentTime > 0 && !film.paused)")
    assert shown.evaluate("film => film.error && film.error.message") is None
    begun = shown.evaluate("film => film.currentTime")
    page = shown.page
    page.wait_for_function("([film, begun]) => film.currentTime !== begun", arg=[shown.element_handle(), begun])
    seen = pixels_of(drawn(shown))
    return min(float(np.abs(seen - frame).mean()) if seen.shape == frame.shape else 1.0 for frame in frames_of(made))


def sound_of(content: bytes) -> tuple[float, float]:
    """The seconds of a sound and its loudness, as decoded."""
    with av.open(io.BytesIO(content), "r") as sound:
        rate = sound.streams.audio[0].rate
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        parts = [part.to_ndarray() for frame in sound.decode(audio=0) for part in resampler.resample(frame)]
    samples = np.concatenate(parts, axis=1)
    return samples.shape[1] / rate, loudness(samples)


def loudness(samples: NDArray[Any]) -> float:
    """The root of the mean square of samples in [-1, 1]; a resampler leaves it alone, but not the peak."""
    return float(np.sqrt(np.mean(np.square(samples))))


def heard(player: Locator) -> tuple[float, float]:
    """The same of what a player plays; it has to play it."""
    player.evaluate("player => player.play()")
    wait_for(player, "player => player.error || player.currentTime > 0")
    assert player.evaluate("player => player.error && player.error.message") is None
    seconds, loud = player.evaluate(HEARD)
    return float(seconds), float(loud)


def body_of(canvas: Locator) -> NDArray[np.bool_]:
    """Where a thing is seen on a canvas, of shape (height, width): where it is not as its ground, beside the frame."""
    seen = pixels_of(canvas.screenshot())
    ground = seen[8, 8]
    mask: NDArray[np.bool_] = np.abs(seen - ground).max(axis=2) > 0.02
    mask[:4], mask[-4:], mask[:, :4], mask[:, -4:] = False, False, False, False
    return mask


def hue(colours: NDArray[Any]) -> NDArray[Any]:
    """The shares of red, green and blue of colours of shape (number, 3), on average; the same in the shade."""
    return np.asarray((colours / np.maximum(colours.sum(axis=1, keepdims=True), 1e-6)).mean(axis=0))


def hue_on(canvas: Locator) -> NDArray[Any]:
    """The hue of the thing that is seen."""
    return hue(pixels_of(canvas.screenshot())[body_of(canvas)])


def hue_of_mesh(content: bytes) -> NDArray[Any]:
    """The hue of a file's triangles, each as large as it is, as a screen shows linear colours."""
    scene: Any = trimesh.load(io.BytesIO(content), file_type="glb")
    (mesh,) = scene.geometry.values()
    shown = np.asarray(mesh.visual.vertex_attributes["color"], float)[:, :3] ** (1 / 2.2)
    return hue(shown[mesh.faces].mean(axis=1)[mesh.area_faces > 0])
