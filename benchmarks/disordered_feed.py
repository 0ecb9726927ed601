"""A feed in random orders, with duplicates and corrections, into archives that must be the same.

``python -m benchmarks.disordered_feed [--examples N] [--out FILE.json]``. The files and the
orders are those of ``tests/data/test_archive_order.py``, drawn by Hypothesis: nine inputs for six
slots, two of them corrections, one a duplicate, one damaged, some sent twice more, cut into calls
of ingest at random. Compared are each frame's bytes, the rows of the index but for the time of
arrival, and the values as opened, before and after `fsck`. Counts instead of stopping.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from nowcast import durable
from nowcast.data.archive import fsck, ingest

TESTS = Path(__file__).resolve().parent.parent / "tests"
EXAMPLES = 300
RULE_OF_THREE = 3.0  # of n without one, by 95 % at most 3/n


def count_orders(examples: int, *, chosen_seed: int = 0) -> dict[str, Any]:
    """Ingest a feed in that many orders; give how many archives (`bad`) are not the same."""
    sys.path[:0] = [str(TESTS), str(TESTS / "data")]
    import test_archive_order as feed

    counted = dict.fromkeys(("examples", "arrivals", "calls", "frames", "bad"), 0)
    drawn_before: set[str] = set()
    differing: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        arrivals = feed.feed(Path(scratch))
        ingest(arrivals, Path(scratch, "archive"))
        reference = feed.state(Path(scratch, "archive"))

        @seed(chosen_seed)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(drawn=feed.orders(len(arrivals)))
        def one(drawn: tuple[list[int], list[int]]) -> None:
            order, cuts = drawn
            with tempfile.TemporaryDirectory() as folder:
                archive = feed.archived(arrivals, order, cuts, folder)
                first = feed.state(archive)
                whole = fsck(archive).damaged == ()
                same = whole and first == reference == feed.state(archive)
            counted["examples"] += 1
            counted["arrivals"] += len(order)
            counted["calls"] += len(cuts) + 1
            counted["frames"] += len(first[0])
            counted["bad"] += not same
            drawn_before.add(str(drawn))
            if not same:
                differing.append(str(drawn))

        one()
    return {
        **counted,
        "different_orders": len(drawn_before),
        "95 % below": RULE_OF_THREE / max(counted["examples"], 1),
        "differing": differing,
        "seed": chosen_seed,
        "duration_s": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Count, print a table in Markdown, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given_ = parser.parse_args()
    figures = count_orders(given_.examples, chosen_seed=given_.seed)
    print("| figure | value |\n|---|---|")
    for name, value in figures.items():
        print(f"| {name} | {json.dumps(value)} |")
    if given_.out:
        durable.write_json(given_.out, figures)


if __name__ == "__main__":
    main()
