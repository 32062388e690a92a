"""The hub's files: fetched once, checked, and one clear sentence where they cannot be had."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.hubs import REVISION, Hub, entry, files_of, run_steps, serving

MODEL = "model.safetensors"
FETCHED_AT_ONCE = f"/test/tiny/resolve/{REVISION}/"


@pytest.fixture
def hub(data_dir: Path) -> Iterator[Hub]:
    others = {"README.md": b"#", "pytorch_model.bin": b"pickle", "extra/other.safetensors": b"too much"}
    with serving(Hub({**files_of(data_dir / "tiny" / "text"), **others})) as hub:
        yield hub


def opened(home: Path, hub: Hub, **changes: object) -> str:
    """Open the weights in a process of its own; give their folder, or what was said."""
    return run_steps(home, (entry(**changes), "open"), HF_ENDPOINT=hub.url)[0]


def test_the_files_are_fetched_by_pattern_at_the_pinned_revision_and_then_kept(hub: Hub, tmp_path: Path) -> None:
    folder = opened(tmp_path, hub)
    fetched = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert fetched == {path for path in hub.files if path.endswith(".json") or path == MODEL}
    assert Path(folder).name == REVISION
    assert all(REVISION in path for path in hub.asked if "/test/tiny/" in path)

    hub.asked.clear()
    assert opened(tmp_path, hub) == folder
    assert hub.asked == []

    # Nor without a network.
    assert run_steps(tmp_path, (entry(), "load"), HF_HUB_OFFLINE="1") == ["TextStepper"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"revision": "f" * 40}, "there is no such revision"),
        ({"repository": "test/other"}, "there is no such repository, or none that is shown without another HF_TOKEN"),
    ],
)
def test_what_the_hub_does_not_have(hub: Hub, tmp_path: Path, changes: dict[str, str], sentence: str) -> None:
    said = opened(tmp_path, hub, **changes)
    assert said.startswith("503: model 'tiny' could not be fetched from the hub (test/")
    assert said.endswith(f" GB): {sentence}")


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (
            (403, "GatedRepo"),
            "its owners give it to those who accept their terms: do so on its page, then set HF_TOKEN",
        ),
        ((401, "RepoNotFound"), "there is no such repository, or none that is shown without another HF_TOKEN"),
        ((403, ""), "the hub refuses it (403); set HF_TOKEN to one that may read it"),
    ],
)
def test_what_the_hub_does_not_give(hub: Hub, tmp_path: Path, refusal: tuple[int, str], sentence: str) -> None:
    hub.refusal = refusal
    assert opened(tmp_path, hub).endswith(f": {sentence}")


def test_a_disk_that_is_full_while_files_come(hub: Hub, tmp_path: Path) -> None:
    said = run_steps(tmp_path, (entry(), "fill the disk"), (entry(), "open"), HF_ENDPOINT=hub.url)[-1]
    assert said.endswith(": there is no room left on the disk, or in a quota")
    assert not opened(tmp_path, hub).startswith("503: ")


def test_bytes_are_told_while_they_come(hub: Hub, tmp_path: Path) -> None:
    told = run_steps(tmp_path, (entry(), "listen"), HF_ENDPOINT=hub.url)[0]
    assert told.startswith("downloading, 1 of 1 MB; ")
    assert told.endswith("; reading")


def test_a_file_of_the_cache_that_was_damaged_is_found_when_the_load_fails(hub: Hub, tmp_path: Path) -> None:
    kept = Path(opened(tmp_path, hub)) / MODEL
    kept.write_bytes(kept.read_bytes()[:20] + b"\xff" * 20 + kept.read_bytes()[40:])
    broken, mended = run_steps(tmp_path, (entry(), "load"), (entry(), "load"), HF_ENDPOINT=hub.url)
    assert broken.startswith(f"503: model 'tiny': {MODEL} is not what the hub says it is, and was deleted")
    assert mended == "TextStepper"


def test_without_a_network_it_is_said_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    [nothing] = run_steps(tmp_path, (entry(), "open"), HF_HUB_OFFLINE="1")
    assert nothing.startswith("503: model 'tiny' could not be fetched from the hub (test/tiny at 0123456, 0.1 GB): ")
    assert MODEL in nothing
    assert "HF_HUB_OFFLINE" in nothing

    hub.withheld.add(MODEL)
    assert opened(tmp_path, hub).startswith("503: ")
    [partly] = run_steps(tmp_path, (entry(), "open"), HF_HUB_OFFLINE="1")
    assert f"lacks {MODEL}; 'atelier models pull tiny' fetches it" in partly


def test_who_was_interrupted_fetches_only_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    hub.withheld.add(MODEL)
    assert opened(tmp_path, hub).startswith("503: ")
    hub.withheld.clear()
    hub.asked.clear()
    assert not opened(tmp_path, hub).startswith("503: ")
    assert [path for path in hub.asked if path.startswith(FETCHED_AT_ONCE)] == [f"{FETCHED_AT_ONCE}{MODEL}"]


@pytest.mark.parametrize("name", [MODEL, "config.json"])
def test_what_comes_damaged_is_not_kept(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.damaged.add(name)
    said = opened(tmp_path, hub)
    assert said == (
        f"503: model 'tiny': {name} is not what the hub says it is, and was deleted; "
        "'atelier models pull tiny' fetches it again"
    )
    hub.damaged.clear()
    hub.asked.clear()
    assert (Path(opened(tmp_path, hub)) / name).read_bytes() == hub.files[name]
    assert [path for path in hub.asked if path.startswith(FETCHED_AT_ONCE)] == [f"{FETCHED_AT_ONCE}{name}"]


def test_nothing_is_asked_where_there_is_no_room(hub: Hub, tmp_path: Path) -> None:
    said = opened(tmp_path, hub, size_gb=1e9)
    assert said.startswith("503: model 'tiny' takes 1000000000.0 GB and ")
    assert "HF_HOME" in said
    assert hub.asked == []
