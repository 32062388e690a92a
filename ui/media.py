"""What was made, shown: pictures, sound, films, and meshes that turn under the mouse."""

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import streamlit as st

from ui import bare

HERE = Path(__file__).parent
WIDTH = 384  # pixels, of pictures and films
FEW = 300  # characters of a text that is shown small
VIEWER_HEIGHT = 400  # pixels, the hint below it included
EXTENSIONS = {
    "image/jpeg": "jpg",
    "audio/mpeg": "mp3",
    "audio/ogg": "opus",
    "audio/x-wav": "wav",
    "model/gltf-binary": "glb",
    "application/octet-stream": "bin",
}
TYPES = {"mp3": "audio/mpeg", "opus": "audio/ogg", "gif": "image/gif", "webp": "image/webp"}  # not as they are called
LABELS = {"thumbnail": "Thumbnail", "spritesheet": "Sprite sheet", "points": "Points (PLY)", "preview": "Turning (GIF)"}

Fetch = Callable[[str], bytes]


def show(job: Mapping[str, Any], fetch: Fetch) -> None:
    """Show a job's files.

    Args:
        job: that is completed.
        fetch: returns the file at a URL of the job's.
    """
    files = {each["variant"]: each for each in job["outputs"]}
    match job["kind"]:
        case "image":
            pictures = [each for each in job["outputs"] if each["media_type"].startswith("image/")]
            shown = [fetch(each["url"]) for each in pictures]
            st.image(shown, width=WIDTH, output_format="PNG", alt=[described(job)] * len(pictures))  # as they are
        case "audio" if files["audio"]["media_type"] == bare.MEDIA_TYPE:
            st.audio(bare.wav(fetch(files["audio"]["url"])), "audio/wav", alt=described(job))
        case "audio":
            st.audio(fetch(files["audio"]["url"]), files["audio"]["media_type"], alt=described(job))
        case "video" if files["video"]["media_type"].startswith("image/"):
            st.image(fetch(files["video"]["url"]), width=WIDTH, alt=described(job))
        case "video":
            film = fetch(files["video"]["url"])
            st.video(film, loop=True, autoplay=True, muted=True, alt=described(job), width=WIDTH)
        case "mesh":
            component("viewer")(
                key=f"mesh-{job['id']}",
                data={"glb": b64encode(fetch(files["glb"]["url"])).decode(), "label": described(job)},
                height=VIEWER_HEIGHT,
            )
        case _:
            st.text(text_of(fetch(files["answer"]["url"])))


def still(job: Mapping[str, Any], fetch: Fetch) -> None:
    """Show a small picture of what a job made, or else the sound itself."""
    files = {each["variant"]: each for each in job["outputs"]}
    found = next((files[name] for name in ("image", "thumbnail", "preview") if name in files), None)
    if job["kind"] == "text":
        st.text(shorten(text_of(fetch(files["answer"]["url"])), FEW, placeholder=" …"))
    elif found is None:
        show(job, fetch)
    else:
        st.image(fetch(found["url"]), width="stretch", alt=described(job))


def text_of(content: bytes) -> str:
    """What a chat's, a completion's or a response's answer says, and which functions it calls."""
    answer = json.loads(content)
    if "output" in answer:
        return "\n\n".join(filter(None, map(words_of, answer["output"])))
    return "\n\n".join(words_of(each.get("message", each)) for each in answer["choices"])


def words_of(said: Mapping[str, Any]) -> str:
    """What a message, a choice of a completion or an item of a response says or calls."""
    content = said.get("content") or said.get("text") or said.get("refusal") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text") or part.get("refusal") or "" for part in content)
    calls = (
        [said] if said.get("type") == "function_call" else [each["function"] for each in said.get("tool_calls") or ()]
    )
    return "\n".join(filter(None, [content, *(f"{each['name']}({each['arguments']})" for each in calls)]))


@st.cache_resource
def component(name: str) -> Callable[..., object]:
    """What the browser is given once: the `viewer` of meshes, or the `player` of a speech that is being made."""
    html, css, script = ((HERE / name / f"{name}.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    return st.components.v2.component(f"atelier_{name}", html=html, css=css, js=script)


def title_of(job: Mapping[str, Any]) -> str:
    """What a job is about, in words."""
    return str(job["prompt"] or {"text": "A text", "audio": "A speech"}.get(job["kind"], "From a picture"))


def described(job: Mapping[str, Any]) -> str:
    """What a job made, for who cannot see it."""
    return f"Made by {job['model']}: {title_of(job)}"


def extension_of(output: Mapping[str, Any]) -> str:
    """How the name of a file ends."""
    media_type = output["media_type"].partition(";")[0]
    return EXTENSIONS.get(media_type) or media_type.partition("/")[2].removeprefix("x-")


def converted(kind: str, output: Mapping[str, Any], word: str) -> dict[str, str]:
    """What becomes of a file's type and URL where it is had as another kind of file."""
    media_type = TYPES.get(word) or f"{kind}/{word}"
    return {"media_type": media_type, "url": f"{output['url']}&format={word}"}


def label_of(output: Mapping[str, Any], num_steps: int) -> str:
    """What the button says that downloads it."""
    variant, number = output["variant"].partition("-")[::2]
    step = f" of step {output['step']}" if output["step"] < num_steps else ""
    return f"{LABELS.get(variant) or extension_of(output).upper()}{f' {number}' if number else ''}{step}"
