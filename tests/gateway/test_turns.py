"""Who gets the free places: nobody waits behind the hundreds of somebody else."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.foreman import in_turn, key_of
from gateway.jobs.store import Candidate
from services.registry import Task

TASKS: tuple[Task, ...] = ("image", "video")
keys = st.tuples(st.sampled_from(TASKS), st.sampled_from("abcd"))
limits = {"a": None, "b": None, "c": 1, "d": 2}  # of jobs at once
candidates = st.lists(keys, max_size=40).map(
    lambda found: [Candidate(task, turn, seq, limits[turn]) for seq, (task, turn) in enumerate(found)]
)
counts = st.dictionaries(keys, st.integers(1, 4))


@given(candidates, counts, st.fixed_dictionaries({task: st.integers(0, 8) for task in TASKS}), counts)
def test_places_go_to_whoever_has_the_fewest(
    found: list[Candidate], running: dict[tuple[str, str], int], free: dict[Task, int], last: dict[tuple[str, str], int]
) -> None:
    chosen = in_turn(found, running, free, last)
    under_way = Counter(running)
    for each in chosen:
        under_way[key_of(each)] += 1
    left = [each for each in found if each not in chosen]
    total: Counter[str] = Counter()
    for (_, turn), number in under_way.items():
        total[turn] += number

    assert len(set(chosen)) == len(chosen)
    for task in TASKS:
        taken = [each for each in chosen if each.task == task]
        waiting = [each for each in left if each.task == task and may_have_more(each, total)]
        assert len(taken) <= free[task]
        assert len(taken) == free[task] or not waiting  # no place is left empty
        for each in waiting:  # nobody has got one who had more before, while somebody with fewer waits
            assert all(under_way[key_of(other)] - 1 <= under_way[key_of(each)] for other in taken)
        for each in taken:  # each caller's own in order
            assert all(other.seq > each.seq for other in left if key_of(other) == key_of(each))
    before: Counter[str] = Counter()
    for (_, turn), number in running.items():
        before[turn] += number
    for turn, limit in limits.items():
        assert limit is None or total[turn] <= max(limit, before[turn])


def may_have_more(job: Candidate, total: Counter[str]) -> bool:
    return job.places is None or total[job.turn] < job.places


def test_one_job_is_not_behind_hundreds() -> None:
    many = [Candidate("image", turn, seq, None) for seq, turn in enumerate("ab" * 100)]
    one = Candidate("image", "c", 200, None)

    assert one in in_turn([*many, one], {("image", "a"): 1, ("image", "b"): 1}, {"image": 1}, {})
