"""The archive outlives kill -9 at any call, and full disks: a sample of the whole proof.

``python -m benchmarks.reliability crash`` takes every point.
"""

import pytest
from crash.proofs import BLOCKS, DAMAGED, HELD, INODES, NEW, STARTS, WHOLE, Proofs
from crash.shim import why_not
from crash.workers import may_mount

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "it runs here"),
]


@pytest.fixture(scope="module")
def proofs(tmp_path_factory):
    with Proofs(tmp_path_factory.mktemp("crash")) as proofs:
        yield proofs


@pytest.mark.parametrize(("start", "every"), [(HELD, 199), (NEW, 307), (WHOLE, 17), (DAMAGED, 19)])
def test_a_kill_at_any_call_leaves_every_frame_whole_and_once(proofs, start, every):
    tally = proofs.crash_points(start, every=every)
    assert tally.bad == []
    assert tally.tried > 2
    assert tally.undisturbed == 0


@pytest.mark.proof
def test_a_kill_of_the_command_at_random_times_leaves_every_frame_whole_and_once(proofs):
    tally = proofs.random_kills(3, seed=0)
    assert tally.bad == []
    assert tally.tried > 0


@pytest.mark.parametrize("start", STARTS)
def test_nothing_is_acknowledged_before_it_is_flushed_to_disk(proofs, start):
    found = proofs.durability(start)
    assert found.violations == []
    assert found.commits
    assert bool(found.renames) == (start in (HELD, NEW))


@pytest.mark.parametrize(("start", "every"), [(HELD, 137), (WHOLE, 13)])
def test_a_disk_that_fills_at_any_call_costs_nothing_acknowledged(proofs, start, every):
    tally = proofs.full_from_each_call(start, every=every)
    assert tally.bad == []
    assert tally.tried > 2


@pytest.mark.proof
@pytest.mark.skipif(not may_mount(), reason="no file system can be mounted here")
@pytest.mark.parametrize(("kind", "every"), [(BLOCKS, 150), (INODES, 25)])
def test_a_disk_that_is_full_is_told_of_and_used_once_there_is_space(proofs, kind, every):
    tally = proofs.full_disk(kind, every=every)
    assert tally.bad == []
    assert tally.tried > 0
    assert tally.undisturbed == 1
