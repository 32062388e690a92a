"""A job on the page: its progress while it is made, then what was made, with all that can be done with it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urljoin

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from ui import bare, making, media, options, sound
from ui.errors import NotThere
from ui.models import TASKS
from ui.session import asking, client, told

LOOK_SECONDS = 1.0  # between two looks at a job that is under way
OPEN = ("queued", "in_progress")
PLACES = "places"  # in the session's state: which job a place shows, and in which half of it
PICTURES = ("image", "mask", "input_reference")  # fields
WORKER_STATES = {"unreachable": "does not answer; it may be starting", "loading": "is loading its model"}


def place(name: str, job_id: str) -> DeltaGenerator:
    """Return where a list shows a job, by the name of that place.

    Streamlit draws piece by piece over what was there: for a while, the words of one job would stand above the buttons
    of another. So each place has two halves, and another job goes into the one that was empty.
    """
    places: dict[str, tuple[str, int]] = making.kept(PLACES)
    before, half = places.get(name, (job_id, 0))
    half = half if before == job_id else 1 - half
    places[name] = job_id, half
    halves = [st.container() if each == half else st.empty() for each in range(2)]
    return halves[half]


def card(job: Mapping[str, Any]) -> None:
    """Show a job."""
    with st.container(border=True, key=f"card-{job['id']}"):
        st.text(media.title_of(job))
        if job["kind"] == "audio" and (job["status"] in ("in_progress", "completed") or waits_again(job)):
            listen(job)  # one player throughout, so that it does not stop when the speech is whole
        if job["status"] in OPEN:
            under_way(job["id"], job["status"], job["attempts"])
            return
        st.caption(facts(job))
        if job["status"] == "completed" and job["kind"] != "audio":
            with told():
                media.show(job, making.file)
        elif job["status"] == "cancelled":
            st.info("Cancelled.", icon=":material/cancel:")
        elif job["status"] == "failed":
            st.error(reason_of(job), icon=":material/error:")
        actions(job)


def listen(job: Mapping[str, Any]) -> None:
    """Play a speech, also while it is made; by itself the one that was just begun here."""
    path = sound.PATH.format(job_id=job["id"])
    if job["asked"].get("response_format") == "pcm":
        path += f"?{sound.BARE}=1"
    media.component("player")(
        key=f"player-{job['id']}",
        data={
            "url": urljoin(st.context.url or "", path),
            "begins": job["id"] == st.session_state.get(making.BEGUN),
            "isWhole": job["status"] == "completed",
            "label": f"Speech: {job['prompt']}",
        },
        height="content",
    )


def waits_again(job: Mapping[str, Any]) -> bool:
    """Whether it waits between two attempts."""
    return bool(job["status"] == "queued" and job["attempts"])


@st.fragment(run_every=LOOK_SECONDS)
def under_way(job_id: str, status: str, attempts: int) -> None:
    """Show how far a job is; it looks by itself, and the rest of the page stays as it is until the job is another."""
    with told():
        asked = client()
        try:
            job = asked.job(job_id)
        except NotThere:  # somebody has deleted it
            st.rerun()
        if (job["status"], job["attempts"]) != (status, attempts):
            st.rerun()
        st.progress(job["progress"] / 100, text=progress_of(job))
        st.button(
            "Cancel", key=f"cancel-{job_id}", on_click=making.cancel, args=(job_id,), icon=":material/stop_circle:"
        )
        if not job["step_progress"]:  # below the button, which stays under the mouse so
            waiting(asked.workers().get(job["kind"], "ready"))
        elif job["kind"] in ("image", "video"):
            sketch = asked.preview(job_id)
            if sketch is not None:
                words = f"A sketch of: {job['prompt'] or 'a picture'}"
                st.image(sketch, caption="a sketch, on the way", width=256, alt=words)


def waiting(state: str) -> None:
    """Say what a job waits for that nobody works on."""
    if state in WORKER_STATES:
        st.warning(
            f"The worker for this {WORKER_STATES[state]}. The job waits until it is back; nothing is lost.",
            icon=":material/hourglass:",
        )


def actions(job: Mapping[str, Any]) -> None:
    """Offer what can be done with a job that has ended."""
    job_id, is_done = job["id"], job["status"] == "completed"
    with st.container(horizontal=True):
        for output in job["outputs"] if is_done else ():
            download(job, output)
        if is_done:
            other_formats(job)
        reason = making.why_unrepeatable(job)
        st.button(
            "Again with another seed",
            key=f"again-{job_id}",
            on_click=making.again,
            args=(job,),
            disabled=reason is not None,
            help=reason,
            icon=":material/casino:",
        )
        if is_done and job["kind"] == "image":
            go_on(job)
        if not is_done and not is_refused(job):
            st.button("Try again", key=f"retry-{job_id}", on_click=making.retry, args=(job_id,))
        with st.popover("Parameters", key=f"parameters-{job_id}"):
            st.json({**job["asked"], "model": job["model"], "seed": job["seed"], "usage": job["usage"]})
        st.button("Delete", key=f"delete-{job_id}", on_click=making.delete, args=(job_id,), icon=":material/delete:")


def go_on(job: Mapping[str, Any]) -> None:
    """Offer a film and a mesh of each picture."""
    several = len(job["outputs"]) > 1
    for number, output in enumerate(job["outputs"], start=1):
        which = f"image {number}" if several else "this image"
        for task, label in (("video", f"Animate {which}"), ("mesh", f"Make {which if several else 'this'} 3D")):
            st.button(label, key=f"{task}-{output['url']}", on_click=go_on_as_chosen, args=(output, task))


def go_on_as_chosen(output: Mapping[str, Any], task: str) -> None:
    """Have it made, with the options that are set for it."""
    making.go_on(output, task, lambda: options.chosen_for_picture(client(), task))


def other_formats(job: Mapping[str, Any]) -> None:
    """Offer the other kinds of file that what was made can be had as; the gateway has it converted."""
    files = [
        each
        for each in job["outputs"]
        if each["variant"].partition("-")[0] == job["kind"]
        and each["media_type"] != bare.MEDIA_TYPE  # stays what it is
    ]
    words = options.formats_of(job["kind"]) if files else ()
    if not words:
        return
    with st.popover("Other formats", key=f"formats-{job['id']}"):
        for output in files:
            for word in words:
                other = {**output, **media.converted(job["kind"], output, word)}
                if media.extension_of(other) != media.extension_of(output):
                    download(job, other)


def download(job: Mapping[str, Any], output: Mapping[str, Any]) -> None:
    """Offer a file; it is fetched when the button is pressed."""
    asked = asking()
    st.download_button(
        media.label_of(output, len(job["steps"])),
        lambda: asked().file(output["url"]),
        file_name=f"{job['id']}-{output['variant']}.{media.extension_of(output)}",
        mime=output["media_type"],
        key=f"download-{output['url']}",
        on_click="ignore",
        icon=":material/download:",
    )


def facts(job: Mapping[str, Any]) -> str:
    """By which model, with which seed, how long it took."""
    seed = "" if job["seed"] is None else f" · seed {job['seed']}"
    waited = f", {job['queue_seconds']:.1f} s waited" if job["queue_seconds"] >= 0.1 else ""
    took = f" · {job['run_seconds']:.1f} s{waited}" if job["run_seconds"] else ""
    made = datetime.fromtimestamp(job["created_at"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{TASKS[job['kind']]} · `{job['model'] or 'no model yet'}`{seed}{took} · {made}"


def progress_of(job: Mapping[str, Any]) -> str:
    """How far a job is, in words."""
    step = job["step_progress"]
    if "steps" in step:
        left = "" if job["eta_seconds"] is None else f", about {job['eta_seconds']:.0f} s left"
        return f"Step {step['step']} of {step['steps']}{left}"
    if step.get("position"):
        return f"Waits in the worker's queue, at place {step['position']}"
    if job["queue_position"]:
        return f"Waits: {job['queue_position']} came before"
    return "Begins in a moment"


def reason_of(job: Mapping[str, Any]) -> str:
    """Why a job failed, and what to do."""
    error = job["error"] or {}
    reason = error.get("message") or "nobody knows why"
    other = "Attach another picture." if error.get("param") in PICTURES else "Ask for something else."
    advice = other if is_refused(job) else "Try again."
    return f"It failed: {reason.rstrip('.')}. {advice}"


def is_refused(job: Mapping[str, Any]) -> bool:
    """Whether it is at fault itself, and would be refused each time."""
    return (job["error"] or {}).get("code") == "invalid_value"
