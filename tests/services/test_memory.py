"""How much memory a worker believes it may use."""

from pathlib import Path

import pytest

from services.engine.memory import left_in_group


@pytest.mark.parametrize(
    ("limit", "used", "stat"),
    [
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ],
)
def test_a_containers_limit_counts_and_its_cache_of_files_does_not(
    tmp_path: Path, limit: str, used: str, stat: str
) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / used).write_text("700\n")
    (tmp_path / stat).write_text("anon 300\ninactive_file 250\nactive_file 150\n")
    assert left_in_group(tmp_path) == 550
    (tmp_path / used).write_text("1400\n")
    assert left_in_group(tmp_path) == 0


def test_without_a_limit_the_machines_memory_counts(tmp_path: Path) -> None:
    assert left_in_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    assert left_in_group(tmp_path) is None
