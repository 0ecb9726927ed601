"""A sample of the proofs in benchmarks/hostile_files.py, on generated files."""

import random
import sys
from collections import Counter
from pathlib import Path

import knmi_sample
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # of the repository, for its benchmarks

from benchmarks.disordered_feed import count_orders
from benchmarks.hostile_files import (
    NOTHING,
    VALUES,
    Amounts,
    IngestProcess,
    Mutant,
    Sample,
    attacked,
    cf_samples,
    flips,
    prove,
    truncations,
    verdict,
)
from benchmarks.relabelled_files import NO_LABELS, relabellings

FEW = Amounts(places=8, flips=8, aimed=4)


@pytest.fixture(scope="module")
def process():
    with IngestProcess() as running:
        yield running


@pytest.fixture
def knmi(tmp_path):
    path = knmi_sample.write_knmi(tmp_path / "knmi.h5", knmi_sample.rain(1), "2010-08-26")
    return Sample("knmi", path.name, path.read_bytes(), VALUES)


@pytest.fixture
def classic(tmp_path):
    return next(each for each in cf_samples(tmp_path) if each.checksum == NOTHING)


def test_a_file_cut_short_is_never_taken(process, knmi, classic, tmp_path):
    for sample in (knmi, classic):
        mutants = list(truncations(sample, 24, random.Random(0)))
        assert len({mutant.content for mutant in mutants}) == 24
        assert {len(sample.content) - 1, 0} <= {len(mutant.content) for mutant in mutants}
        _, outcome = attacked(sample, mutants, process, tmp_path)
        assert [mutant.what for mutant, _, frames in outcome if frames] == []
        assert all(reason for _, reason, _ in outcome)


def test_changed_bytes_of_packed_values_are_refused_or_change_nothing(process, knmi, tmp_path):
    mutants = list(flips(knmi, 24, 8, random.Random(0)))
    assert all(_bytes_apart(mutant.content, knmi.content) == 1 for mutant in mutants)
    reference, outcome = attacked(knmi, mutants, process, tmp_path)
    found = Counter(verdict(frames, reference)[0] for _, _, frames in outcome)
    assert found["refused"] > 0
    assert found["values"] == found["frames"] == 0


def test_changed_bytes_of_a_format_without_checksum_are_counted(process, classic, tmp_path):
    reference, outcome = attacked(
        classic, flips(classic, 16, 0, random.Random(0)), process, tmp_path
    )
    found = Counter(verdict(frames, reference)[0] for _, _, frames in outcome)
    assert found["values"] > 0  # nothing in such a file could tell
    assert sum(found.values()) == 16


def test_false_labels_are_refused_and_true_ones_taken(process, knmi, tmp_path):
    labels = dict(relabellings("knmi", knmi.content))
    assert labels[NO_LABELS] != b""
    wanted = [what for what in labels if what.startswith(("unit", "gain", "offset", "time: int"))]
    stated = [what for what in wanted if not what.endswith("(values)")]
    assert len(stated) == 8
    mutants = [Mutant(what, labels[what]) for what in (NO_LABELS, *stated)]
    reference, (control, *outcome) = attacked(knmi, mutants, process, tmp_path)
    assert verdict(control[2], reference) == ("same", [])
    assert {verdict(frames, reference)[0] for _, _, frames in outcome} == {"refused"}


def test_a_verdict_tells_values_time_and_place_apart():
    frame = {"source": "a", "grid_id": "1", "time": 0, "values_sha256": "x", "flags": 0}
    assert verdict([], [frame])[0] == "refused"
    assert verdict([dict(frame)], [frame])[0] == "same"
    assert verdict([{**frame, "grid_id": "2", "values_sha256": "y"}], [frame])[0] == "apart"
    assert verdict([{**frame, "values_sha256": "y", "time": 1}], [frame])[0] == "values"
    assert verdict([{**frame, "time": 300}], [frame])[0] == "time"
    assert verdict([{**frame, "flags": 64}], [frame])[0] == "metadata"
    assert verdict([frame, frame], [frame])[0] == "frames"


def test_an_ingest_that_dies_is_counted_and_another_goes_on(tmp_path):
    good = knmi_sample.write_knmi(tmp_path / "good.h5", knmi_sample.rain(1), "2010-08-26")
    with IngestProcess() as running:
        running._start()
        running._process.kill()
        running._process.join()
        running.ingest([good], tmp_path / "archive")
        assert running.watched.crashes == 1
        assert running.ingest([good], tmp_path / "archive") == {}
        assert running.watched.crashes == 1
    assert list((tmp_path / "archive").glob("knmi/*/*/2010/08/26/*.nc"))


@pytest.mark.proof
def test_the_proof_counts_every_mutant(knmi, classic):
    figures = prove([knmi, classic], FEW, seed=1)
    assert figures["summary"]["cut"]["n"] == 16
    assert figures["summary"]["cut"]["accepted"] == 0
    flipped = figures["summary"]["flipped"]
    assert {name: counts["n"] for name, counts in flipped.items()} == {
        f"{VALUES}, anywhere": 8,
        f"{VALUES}, aimed": 4,
        f"{NOTHING}, anywhere": 8,
        f"{NOTHING}, aimed": 4,
    }
    assert figures["summary"]["relabelled"]["controls"] == 1
    assert figures["watched"]["crashes"] == figures["watched"]["hangs"] == 0
    assert figures["watched"]["files"] == 2 * 2 + 1 + 16 + 24 + 26


def test_the_feed_is_counted_in_different_orders():
    counted = count_orders(2, chosen_seed=5)
    assert (counted["examples"], counted["bad"]) == (2, 0)
    assert counted["different_orders"] == 2
    assert counted["arrivals"] >= 18


def _bytes_apart(one, other):
    return int(np.count_nonzero(np.frombuffer(one, "u1") != np.frombuffer(other, "u1")))
