"""`atelier chat`, `speak`, `draw`, `film`, `sculpt`: what they take. What they do is beside it."""

import base64
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.chat import Turn, answer_once, converse
from cli.client import DEFAULT_URL, Key, Server, Url
from cli.errors import Refused
from cli.following import commission
from cli.making import make
from cli.progress import Previews
from cli.saving import STDOUT, Force, read_picture, text_or_pipe

SOUNDS = {"mp3": "mp3", "ogg": "opus", "opus": "opus", "aac": "aac", "flac": "flac", "wav": "wav", "pcm": "pcm"}
PICTURES = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
FILMS = {"mp4": "mp4", "gif": "gif", "webp": "webp"}
MESHES = {"glb": "glb", "obj": "obj", "ply": "ply", "gif": "preview"}

Words = Annotated[
    list[str] | None, typer.Argument(help="The text; what is piped in comes after it.", show_default=False)
]
Model = Annotated[str | None, typer.Option(help="As `atelier models` lists them; the default without.")]
Adapter = Annotated[str | None, typer.Option(help="A LoRA that the operator has given the model.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same result.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps; more take longer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Say as JSON what has come of it.")]
Picture = Annotated[Path | None, typer.Option(help="A picture to begin with: PNG, JPEG, WebP, GIF or BMP.")]


def chat(
    words: Words = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 always takes the likeliest.")] = None,
    model: Model = None,
    adapter: Adapter = None,
    seed: Seed = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = "",
) -> None:
    """Chat on the terminal; or answer the one prompt that is an argument, or piped in."""
    server = Server(url, key)
    turns: list[Turn] = [{"role": "system", "content": system}] if system else []
    fields = given(model=model, adapter=adapter, seed=seed, max_tokens=max_tokens, temperature=temperature)
    if not words and sys.stdin.isatty():
        if as_json:
            raise Refused("--json is for one prompt; give it as an argument, or pipe it in")
        converse(server, turns, fields)
        return
    answer_once(server, [*turns, {"role": "user", "content": text_or_pipe(words)}], fields, as_json=as_json)


def speak(
    words: Words = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file, its ending the format; - is stdout.")
    ] = Path("speech.mp3"),
    form: Annotated[str | None, typer.Option("--format", help="Where the file's name does not say it.")] = None,
    voice: Annotated[str | None, typer.Option(help="One of the model's own.")] = None,
    speed: Annotated[float | None, typer.Option(min=0.25, max=4, help="2 takes half as long.")] = None,
    model: Model = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = "",
) -> None:
    """Say a text: a file; or sound on standard output, as it is made."""
    chosen = form or format_of(output, SOUNDS, "mp3")
    body = given(input=text_or_pipe(words), response_format=chosen, voice=voice, speed=speed, model=model, seed=seed)
    make(Server(url, key), "/v1/audio/speech", {"json": body}, output, force=force, as_json=as_json)


def draw(
    words: Words = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file, its ending the format; - is stdout.")
    ] = Path("picture.png"),
    form: Annotated[str | None, typer.Option("--format", help="png, jpeg or webp.")] = None,
    image: Picture = None,
    mask: Annotated[Path | None, typer.Option(help="What of the picture is drawn anew: white, or transparent.")] = None,
    size: Annotated[str | None, typer.Option(help="As 512x512.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=10, help="How many.")] = 1,
    negative: Annotated[str | None, typer.Option(help="What shall not be seen.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=50, help="How strictly the text is followed.")] = None,
    steps: Steps = None,
    model: Model = None,
    adapter: Adapter = None,
    seed: Seed = None,
    previews: Previews = None,
    force: Force = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = "",
) -> None:
    """Draw a picture, or several; over another one with --image."""
    if mask is not None and image is None:
        raise Refused("--mask says where to draw over a picture; --image names it")
    if n > 1 and output == STDOUT:
        raise Refused("standard output has room for one picture; -o FILE names a file")
    body = given(
        prompt=text_or_pipe(words),
        output_format=form or format_of(output, PICTURES, "png"),
        size=size,
        n=n if n > 1 else None,
        negative_prompt=negative,
        guidance_scale=guidance,
        num_inference_steps=steps,
        model=model,
        adapter=adapter,
        seed=seed,
    )
    files = {name: (path.name, read_picture(path)) for name, path in given(image=image, mask=mask).items()}
    sent, path = ({"json": body}, "/v1/images/generations") if not files else (form_of(body, files), "/v1/images/edits")
    make(Server(url, key), path, sent, output, number=n, previews=previews, force=force, as_json=as_json)


def film(
    words: Annotated[list[str] | None, typer.Argument(help="What is to be seen.", show_default=False)] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file: .mp4, .gif or .webp; - is stdout.")] = Path(
        "film.mp4"
    ),
    image: Picture = None,
    frames: Annotated[int | None, typer.Option(min=1, help="How many.")] = None,
    fps: Annotated[int | None, typer.Option(min=1, help="Of them, in a second.")] = None,
    size: Annotated[str | None, typer.Option(help="As 512x512.")] = None,
    steps: Steps = None,
    model: Model = None,
    seed: Seed = None,
    previews: Previews = None,
    force: Force = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = "",
) -> None:
    """Film a text, or a picture with --image."""
    if not words and image is None:
        raise Refused("there is nothing to film; give a text, or a picture with --image")
    form = format_of(output, FILMS, "mp4")
    body = given(
        prompt=" ".join(words) if words else None,
        output_format=form if form != "mp4" else None,  # which is what servers make that know no other
        num_frames=frames,
        fps=fps,
        size=size,
        num_inference_steps=steps,
        model=model,
        seed=seed,
    )
    files = {"input_reference": (image.name, read_picture(image))} if image is not None else {}
    sent = form_of(body, files) if files else {"json": body}
    outputs = {"video": output}
    commission(Server(url, key), "/v1/videos", sent, outputs, previews=previews, force=force, as_json=as_json)


def sculpt(
    words: Annotated[list[str] | None, typer.Argument(help="What it shall be.", show_default=False)] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file: .glb, .obj, .ply, or .gif, where it turns; - is stdout.")
    ] = Path("mesh.glb"),
    image: Picture = None,
    steps: Steps = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=50, help="How strictly it is followed.")] = None,
    grid: Annotated[int | None, typer.Option(min=8, max=192, help="Cells along an edge; more are finer.")] = None,
    model: Model = None,
    seed: Seed = None,
    force: Force = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
    key: Key = "",
) -> None:
    """Make a mesh of a text, or of a picture with --image."""
    if bool(words) == (image is not None):
        raise Refused("give a text, or a picture with --image, and not both")
    body = given(
        prompt=" ".join(words) if words else None,
        image=base64.b64encode(read_picture(image)).decode() if image is not None else None,
        num_inference_steps=steps,
        guidance_scale=guidance,
        grid_size=grid,
        model=model,
        seed=seed,
    )
    outputs = {format_of(output, MESHES, "glb"): output}
    commission(Server(url, key), "/v1/3d/generations", {"json": body}, outputs, force=force, as_json=as_json)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that somebody has given."""
    return {name: value for name, value in fields.items() if value is not None}


def form_of(body: Mapping[str, Any], files: Mapping[str, tuple[str, bytes]]) -> dict[str, Any]:
    """A multipart form, as httpx takes it."""
    return {"data": {name: str(value) for name, value in body.items()}, "files": files}


def format_of(output: Path, formats: Mapping[str, str], default: str) -> str:
    """Read the format from a file's name.

    Raises:
        Refused: it is none.
    """
    ending = output.suffix.lower().removeprefix(".")
    if output == STDOUT or not ending:
        return default
    if ending not in formats:
        raise Refused(f"{output} has an unknown ending; there are: {', '.join(f'.{each}' for each in formats)}")
    return formats[ending]
