"""Prove by counting that nothing is lost: one part after the other, each with its figures.

Run ``python -m benchmarks.reliability crash --out FILE.json`` from the root of the repository, or
one part of it (`PARTS`). Every figure is a count of what was tried and of what came out bad; for
a zero, the 95 % upper bound by the rule of three stands beside it.
"""

import argparse
import contextlib
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # for the tools of crash

from crash.proofs import BLOCKS, HELD, INODES, LIMIT, NEW, STARTS, WHOLE, Proofs, Tally
from crash.shim import why_not
from crash.workers import may_mount

from nowcast import durable

LIBRARIES = ("h5py", "netCDF4", "numpy", "xarray")
SHOWN = 20  # bad outcomes that are written out
QUANTILES = {"p50": 50, "p99": 99, "max": 100}

Figures = dict[str, Any]


def main() -> None:
    """Run one part, print its figures and write them."""
    arguments = _arguments()
    began = time.monotonic()
    figures = PARTS[arguments.part](arguments)
    figures["seconds"] = round(time.monotonic() - began)
    _print(figures)
    if arguments.out:
        durable.write_json(arguments.out, {arguments.part: figures, "machine": _machine()})
    sys.exit(1 if _is_bad(figures) else 0)


def crash(arguments: argparse.Namespace) -> Figures:
    """Kills at every call and at random times, the order of flushes, and full disks."""
    return {
        "points": points(arguments),
        "kills": kills(arguments),
        "order": order(arguments),
        "disk": disk(arguments),
    }


def points(arguments: argparse.Namespace) -> Figures:
    """SIGKILL at every mutating call: writes half done, and not begun; in one thread, in many."""
    every = arguments.every
    with _proofs(arguments) as proofs:
        tallies = {start: proofs.crash_points(start, every=every) for start in STARTS}
        variants: dict[str, dict[str, Any]] = {
            "writes not begun": {"torn": False},
            "in threads": {"one_thread": False},
            "with decoders": {"one_thread": False, "decoders": True, "every": 20 * every},
        }
        for name, how in variants.items():
            tallies[f"{HELD}, {name}"] = proofs.crash_points(HELD, **{"every": every, **how})
    return {name: _counted(tally) for name, tally in tallies.items()}


def kills(arguments: argparse.Namespace) -> Figures:
    """SIGKILL of ``nowcast ingest`` at random times of its work."""
    with _proofs(arguments, more=arguments.frames) as proofs:
        return _counted(proofs.random_kills(arguments.kills, seed=arguments.seed))


def order(arguments: argparse.Namespace) -> Figures:
    """Order of flushes in the trace of one run, and whether strace sees calls that it has not."""
    figures = {}
    with _proofs(arguments) as proofs:
        for start in STARTS:
            found = proofs.durability(start)
            figures[start] = {
                "renames": found.renames,
                "folders made": found.folders,
                "flushes of the index's log": found.commits,
                "bad": len(found.violations),
                "bad outcomes": found.violations[:SHOWN],
            }
        try:
            seen, missed = proofs.unseen_calls(NEW)
        except FileNotFoundError:
            return figures  # there is no strace, which nothing else needs
        figures["strace"] = {"calls": seen, "bad": sum(missed.values()), "bad outcomes": missed}
    return figures


def disk(arguments: argparse.Namespace) -> Figures:
    """Full disks: at every call, and real small ones."""
    every = arguments.every
    with _proofs(arguments) as proofs:
        figures = {
            f"{start}, full from each call": _counted(
                proofs.full_from_each_call(start, every=every)
            )
            for start in (HELD, WHOLE)
        }
        for kind in (BLOCKS, INODES) if may_mount() else (LIMIT,):
            figures[kind] = _counted(proofs.full_disk(kind, every=every))
    return figures


def corrupt(arguments: argparse.Namespace) -> Figures:
    """Radar files cut short, with changed bytes and with false labels; see hostile_files."""
    from benchmarks.hostile_files import corruption, tables

    figures = corruption(arguments.radar, seed=arguments.seed)
    print(tables(figures))
    return {name: value for name, value in figures.items() if name not in ("found", "rows")}


def feed(arguments: argparse.Namespace) -> Figures:
    """Random orders of arrival, with duplicates and corrections; see disordered_feed."""
    from benchmarks.disordered_feed import count_orders

    return count_orders(arguments.orders, chosen_seed=arguments.seed)


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "crash": crash,
    "points": points,
    "kills": kills,
    "order": order,
    "disk": disk,
    "corrupt": corrupt,
    "feed": feed,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--every", type=int, default=1, help="take each so manieth point")
    parser.add_argument("--kills", type=int, default=200, help="number of random kills")
    parser.add_argument("--frames", type=int, default=60, help="further ones under random kills")
    parser.add_argument("--orders", type=int, default=300, help="of arrival")
    parser.add_argument("--radar", type=Path, default=_radar(), help="a folder for each family")
    return parser.parse_args()


def _radar() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("NOWCAST_SHARED_DATA", beside)) / "radar"


@contextlib.contextmanager
def _proofs(arguments: argparse.Namespace, *, more: int = 0) -> Iterator[Proofs]:
    """Give the scenario in a folder that is removed at the end."""
    if why_not():
        raise SystemExit(why_not())
    with (
        tempfile.TemporaryDirectory(prefix="nowcast-crash-") as folder,
        Proofs(Path(folder), workers=arguments.workers, more=more) as proofs,
    ):
        yield proofs


def _counted(tally: Tally) -> Figures:
    figures: Figures = {
        "tried": tally.tried,
        "undisturbed": tally.undisturbed,
        "bad": len(tally.bad),
        "95 % upper bound of bad": None if tally.bad or not tally.tried else 3 / tally.tried,
        "bad outcomes": tally.bad[:SHOWN],
    }
    for name, percent in QUANTILES.items() if tally.seconds else ():
        figures[f"opening, {name} (s)"] = round(float(np.percentile(tally.seconds, percent)), 4)
    if tally.messages:
        figures["messages"] = dict(tally.messages.most_common())
    return figures


def _is_bad(figures: Any) -> bool:
    if not isinstance(figures, dict):
        return False
    return bool(figures.get("bad")) or any(map(_is_bad, figures.values()))


def _print(figures: Figures, indent: str = "") -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _print(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value}")


def _machine() -> Figures:
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"system": platform.platform(), "cores": os.cpu_count(), **versions}


if __name__ == "__main__":
    main()
