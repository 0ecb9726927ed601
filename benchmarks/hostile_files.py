"""Damaged and relabelled radar files against the ingest: what is refused, and what slips through.

``python -m benchmarks.hostile_files FOLDER [--out FILE.json]``, where FOLDER holds one folder per
family, as in ``$NOWCAST_SHARED_DATA/radar``. A sample of each family and product is cut short at
many places, has single bytes changed, and is relabelled (`benchmarks.relabelled_files`); every
mutant goes through `nowcast.data.archive.ingest`, in one process that is watched for a crash, a
hang and its memory. What comes to lie in the archive is held against the frames of the file as
it was. Prints tables in Markdown.
"""

import argparse
import contextlib
import gzip
import json
import multiprocessing
import random
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.radar_families import families
from benchmarks.relabelled_files import NO_LABELS, VALUES_CHANGED, relabellings
from nowcast import durable
from nowcast.data.framefiles import MARK
from nowcast.data.quality import COVERAGE_JUMP, FLAGS

PLACES = 200  # of each file at which it is cut short
FLIPS = 200  # bytes of each file that are changed, anywhere, one in each mutant
AIMED = 50  # more, in what is no packed value in most formats: the start and the end
START, END = 2048, 512  # bytes of these
HANG = 30.0  # seconds for one file
SILENCE = 600.0  # seconds without a file done, after which the ingest counts as hung, and is ended
GLANCE = 0.2  # seconds between looks at its memory
RULE_OF_THREE = 3.0  # of n without one, by 95 % at most 3/n

# What a format checks by itself, by the reader and the suffix.
WHOLE, VALUES, NOTHING = "checksum of all", "checksum of values", "no checksum"
CHECKSUMS = {
    "meteonet": VALUES,  # CRC-32 of each member of the zip file, not of its directory
    "mrms": VALUES,  # CRC-32 of the PNG, not of the sections before it
    "knmi": VALUES,  # Adler-32 of zlib in HDF5's chunks, not of its headers
    "odim": VALUES,
    "bom": VALUES,
    "cf netCDF-4": VALUES,
}
_TOLD = ("summary", "watched", "untouched", "bad", "duration_s")
# What in the archive is another frame altogether; the rest of a row is about this one.
_PLACE = ("source", "product", "grid_id", "variable")
_OF_ARRIVAL = frozenset({"input_sha256", "path", "sha256", "arrived"})
_MAGIC = (b"\x03", b"\n", b"PK\1\2", b"PK\3\4", b"PK\5\6", b"IDAT", b"IEND", b"7777", b"TREE")


@dataclass(frozen=True)
class Sample:
    """One untouched file.

    Parameters
    ----------
    family
        Reader and product.
    name
        Of the file: mutants bear it too.
    content
        Its bytes.
    checksum
        What of it the format checks.
    """

    family: str
    name: str
    content: bytes
    checksum: str


@dataclass(frozen=True)
class Mutant:
    """A file that is not what it was.

    Parameters
    ----------
    what
        Was done to it; the part before the colon is the kind.
    content
        Its bytes.
    """

    what: str
    content: bytes


@dataclass
class Watched:
    """What was seen of the ingest process.

    Parameters
    ----------
    crashes, hangs
        Times that it ended, or that no file was done for `SILENCE` seconds.
    slow
        Files that took longer than `HANG`.
    longest_s
        For one file.
    files
        Given to it.
    first_mb, peak_mb
        Its memory after the first call and at most.
    decoders_mb
        Of all its children together, at most.
    """

    crashes: int = 0
    hangs: int = 0
    slow: int = 0
    longest_s: float = 0.0
    files: int = 0
    first_mb: float = 0.0
    peak_mb: float = 0.0
    decoders_mb: float = 0.0


@dataclass
class Tally:
    """What became of the mutants of one sample."""

    counts: Counter[str] = field(default_factory=Counter)
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, verdict: str, **told: Any) -> None:
        """Count one, and keep what is told of it."""
        self.counts[verdict] += 1
        if told:
            self.found.append({"verdict": verdict, **told})


class IngestProcess:
    """A process that ingests files on request, watched; started anew if it dies."""

    def __init__(self) -> None:
        self.watched = Watched()
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> "IngestProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ingest(self, files: list[Path], archive: Path) -> dict[str, str]:
        """Ingest files; give the reasons of those refused, by path.

        After a crash or a hang, what it had acknowledged counts.
        """
        if self._process is None:
            self._start()
        self.watched.files += len(files)
        try:
            self._pipe.send(([str(path) for path in files], str(archive)))
            reasons = self._awaited()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.watched.crashes += 1
        except TimeoutError:
            self.watched.hangs += 1
        else:
            self.watched.first_mb = self.watched.first_mb or self.watched.peak_mb
            return reasons
        self._end()
        return {}

    def _awaited(self) -> dict[str, str]:
        """Give the answer, with an eye on the process until it comes."""
        import psutil

        seen, last = psutil.Process(self._process.pid), time.monotonic()
        while time.monotonic() - last < SILENCE:
            message = self._pipe.recv() if self._pipe.poll(GLANCE) else None
            self._measure(seen)
            if isinstance(message, dict):
                return message
            if message is not None:
                last = time.monotonic()
                self.watched.longest_s = max(self.watched.longest_s, message)
                self.watched.slow += message > HANG
        raise TimeoutError

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_ingest_on_request, args=(other,))
        self._process.start()
        other.close()

    def _measure(self, process: Any) -> None:
        import psutil

        with contextlib.suppress(psutil.Error):
            own = process.memory_info().rss / 1e6
            self.watched.peak_mb = max(self.watched.peak_mb, own)
            children = sum(child.memory_info().rss for child in process.children()) / 1e6
            self.watched.decoders_mb = max(self.watched.decoders_mb, children)

    def _end(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = None


def _ingest_on_request(pipe: Any) -> None:
    """Ingest what is asked for until the pipe ends; send the seconds of each file, then reasons."""
    from dask.callbacks import Callback

    from nowcast.data.archive import ingest

    started: dict[Any, float] = {}

    def before(key: Any, *_: object) -> None:
        started[key] = time.monotonic()

    def after(key: Any, *_: object) -> None:
        pipe.send(time.monotonic() - started.pop(key))

    while True:
        try:
            files, archive = pipe.recv()
        except EOFError:
            return
        with Callback(pretask=before, posttask=after):
            report = ingest(files, archive)
        pipe.send({**dict(report.refused), **dict(report.skipped)})


def samples(folder: Path, scratch: Path, *, driest: bool = False) -> list[Sample]:
    """Give the largest file of each family and product, which holds the most rain.

    Gzipped ones come unpacked too, without their checksum; to these, two files of synthetic
    rain that follow CF. With `driest`, give the smallest files instead, of families that have
    several small ones.
    """
    found = []
    for (reader, product), paths in families(folder).items():
        by_size = sorted(paths, key=lambda path: path.stat().st_size)
        if driest and (len(paths) < 2 or by_size[0].stat().st_size > 500_000):
            continue
        found += _samples_of(by_size[0 if driest else -1], _family(reader, product), reader)
    return found if driest else [*found, *cf_samples(scratch)]


def _family(reader: str, product: str) -> str:
    return f"{reader} {product[6:8] if reader == 'radolan' else product}".strip()


def _samples_of(path: Path, family: str, reader: str) -> list[Sample]:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return [Sample(family, path.name, content, CHECKSUMS.get(reader, NOTHING))]
    unpacked = Sample(f"{family}, unpacked", path.stem, gzip.decompress(content), NOTHING)
    return [Sample(family, path.name, content, WHOLE), unpacked]


def cf_samples(scratch: Path) -> list[Sample]:
    """Give four frames of synthetic rain as netCDF-4 and as classic netCDF."""
    from nowcast.data.synthetic import synthesise

    observed = synthesise(hours=1, size=32, seed=3).isel(time=slice(4)).load()
    observed["time"].encoding["units"] = "seconds since 1970-01-01"
    found = []
    for kind, engine in (("netCDF-4", "netcdf4"), ("netCDF classic", "scipy")):
        path = scratch / f"{kind.replace(' ', '-')}.nc"
        packed = {"rain_rate": {"zlib": True}} if engine == "netcdf4" else {}
        observed.to_netcdf(path, engine=engine, encoding=packed)
        family = f"cf {kind}"
        checksum = CHECKSUMS.get(family, NOTHING)
        found.append(Sample(family, path.name, path.read_bytes(), checksum))
    return found


def truncations(sample: Sample, count: int, generator: random.Random) -> Iterator[Mutant]:
    """Give a file cut short: at its very end, at powers of two, where parts end, anywhere."""
    content, size = sample.content, len(sample.content)
    places = [size - cut for cut in (1, 2, 3, 4, 8, 16, 64, 512)]
    places += [0, *(2**power for power in range(size.bit_length()))]
    for magic in _MAGIC:
        at = content.find(magic)
        while 0 <= at < size and len(places) < count // 2:
            places.append(at + len(magic))
            at = content.find(magic, at + 1 + size // 8)
    chosen = sorted({place for place in places if 0 <= place < size}, reverse=True)[:count]
    while len(chosen) < min(count, size):
        place = generator.randrange(size)
        if place not in chosen:
            chosen.append(place)
    for place in chosen:
        yield Mutant(f"cut: at {place:,} of {size:,}", content[:place])


def flips(sample: Sample, count: int, aimed: int, generator: random.Random) -> Iterator[Mutant]:
    """Give a file with one byte changed, anywhere or, of `aimed` more, near its start or end."""
    size = len(sample.content)
    near = [*range(min(START, size)), *range(max(START, size - END), size)]
    for number in range(count + aimed):
        kind = "anywhere" if number < count else "aimed"
        place = generator.randrange(size) if number < count else generator.choice(near)
        changed = bytearray(sample.content)
        changed[place] ^= generator.randrange(1, 256)
        what = f"{kind}: byte {place:,} from {sample.content[place]:#04x} to {changed[place]:#04x}"
        yield Mutant(what, bytes(changed))


def attacked(
    sample: Sample, mutants: Iterable[Mutant], process: IngestProcess, scratch: Path
) -> tuple[list[Any], list[tuple[Mutant, str, list[Any]]]]:
    """Ingest a sample and its mutants into a new archive.

    Returns
    -------
    tuple
        The frames of the untouched file, and of each mutant why it was refused and its frames.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        archive = Path(folder, "archive")
        untouched = _written(Path(folder, "untouched", sample.name), sample.content)
        # One below the other, since a file's name may have to agree with what it holds.
        paths = {
            _written(Path(folder, f"{number:05}", sample.name), mutant.content): mutant
            for number, mutant in enumerate(mutants)
        }
        reasons = process.ingest([untouched], archive)
        if reasons:
            raise SystemExit(f"the untouched {sample.name} is refused: {reasons}")
        reasons = process.ingest(list(paths), archive)
        reference = frames_in(archive, durable.sha256(untouched))
        return reference, [
            (mutant, reasons.get(str(path), ""), frames_in(archive, durable.sha256(path)))
            for path, mutant in paths.items()
        ]


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def frames_in(archive: Path, input_sha256: str) -> list[dict[str, Any]]:
    """Give what the archive holds of one input: rows of its index, with the files' attributes."""
    with contextlib.closing(sqlite3.connect(archive / "index.sqlite")) as index:
        index.row_factory = sqlite3.Row
        query = "SELECT * FROM frames WHERE input_sha256 = ? ORDER BY variable, time"
        rows = [dict(row) for row in index.execute(query, [input_sha256])]
    for number, row in enumerate(rows):
        attributes = _attributes(archive / row["path"]) if number == 0 else ""
        row |= {"attributes": attributes}
    return [{k: v for k, v in row.items() if k not in _OF_ARRIVAL} for row in rows]


def _attributes(path: Path) -> str:
    import h5py

    with h5py.File(path, "r") as file:
        told = {f"@{name}": str(value) for name, value in file.attrs.items() if name != MARK}
        for part, dataset in file.items():
            told |= {
                f"{part}@{name}": str(value)
                for name, value in dataset.attrs.items()
                if name not in ("DIMENSION_LIST", "REFERENCE_LIST")
            }
    return json.dumps(told, sort_keys=True)


def verdict(frames: list[Any], reference: list[Any]) -> tuple[str, list[str]]:
    """Give what became of a mutant, and what differs from the untouched file.

    ``refused``; ``same``: every frame as it was; ``apart``: a frame in another part of the
    archive; or what is silently another: ``values``, ``time``, ``frames`` or ``metadata``.
    """
    if not frames:
        return "refused", []
    if len(frames) != len(reference):
        return "frames", [f"{len(frames)} frames of {len(reference)}"]
    changes = {
        f"{name}: {old[name]} became {new[name]}"[:300]
        for new, old in zip(frames, reference, strict=True)
        for name in old
        if new[name] != old[name]
    }
    names = {change.partition(":")[0] for change in changes}
    listed = sorted(changes)[:6]
    if not names:
        return "same", []
    if names & set(_PLACE):
        return "apart", listed
    if "values_sha256" in names:
        return "values", listed
    return ("time" if names & {"time", "bounds_start", "bounds_end"} else "metadata"), listed


def truncated(sample: Sample, outcome: list[tuple[Mutant, str, list[Any]]]) -> Tally:
    """Count what was cut short: everything that is not refused was taken wrongly."""
    tally = Tally()
    for mutant, _, frames in outcome:
        told = {"what": mutant.what, "family": sample.family} if frames else {}
        tally.add("accepted" if frames else "refused", **told)
    return tally


def flipped(sample: Sample, reference: list[Any], outcome: list[Any]) -> Tally:
    """Count what became of changed bytes, anywhere and aimed."""
    tally = Tally()
    for mutant, _, frames in outcome:
        kind = mutant.what.partition(":")[0]
        became, changes = verdict(frames, reference)
        told = {"what": mutant.what, "family": sample.family, "changes": changes}
        tally.add(f"{kind} {became}", **(told if changes else {}))
    return tally


def relabelled(sample: Sample, reference: list[Any], outcome: list[Any]) -> Tally:
    """Count what became of false labels.

    ``detected``: refused, or in another part of the archive, or flagged, since so much more or less
    of the grid is observed than before (`nowcast.data.quality`); ``no effect``: the frame is what
    it was; ``dry`` and ``no contract``: nothing could have told; ``missed``:
    the rest. Apart are counted false labels of true values, and true labels of false values. A
    file written anew with its true labels counts as ``control`` if it is the same.
    """
    tally = Tally()
    for mutant, reason, frames in outcome:
        became, changes = verdict(frames, reference)
        told = {"what": mutant.what, "family": sample.family}
        if mutant.what == NO_LABELS:
            whole = became == "same"
            tally.add("control" if whole else "control failed", **({} if whole else told))
            continue
        part = "values" if mutant.what.endswith(VALUES_CHANGED) else "label"
        judged = f"{part} {_judged(became, frames, reference, mutant.what)}"
        tally.add(judged, **told, changes=changes or [reason])
    return tally


def _judged(became: str, frames: list[Any], reference: list[Any], what: str) -> str:
    if became in ("refused", "apart"):
        return f"detected: {became}"
    if became == "same":
        return "no effect"
    if all(frame["flags"] & FLAGS["unit_unproven"].mask for frame in frames):
        return "undetectable: no contract"
    about_values = what.partition(":")[0] in ("unit", "gain", "offset", "values", "nodata")
    if about_values and not any(frame["wet"] for frame in frames):
        return "undetectable: dry"
    jumps = [
        abs(new["coverage"] / old["coverage"] - 1)
        for new, old in zip(frames, reference, strict=False)
    ]
    return "detected: flagged" if max(jumps) > COVERAGE_JUMP else "missed"


@dataclass(frozen=True)
class Amounts:
    """How much of each attack a proof makes of every file."""

    places: int = PLACES
    flips: int = FLIPS
    aimed: int = AIMED


def prove(
    chosen: list[Sample],
    amounts: Amounts,
    *,
    driest: list[Sample] | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Attack samples in all three ways, those in `driest` with false labels only."""
    began = time.monotonic()
    rows: dict[str, dict[str, Counter[str]]] = {"cut": {}, "flipped": {}, "relabelled": {}}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, IngestProcess() as process:

        def attack(way: str, sample: Sample, mutants: Iterable[Mutant]) -> None:
            reference, outcome = attacked(sample, mutants, process, Path(scratch))
            if way == "cut":
                tally = truncated(sample, outcome)
            else:
                judge = flipped if way == "flipped" else relabelled
                tally = judge(sample, reference, outcome)
            found.extend({"attack": way, **each} for each in tally.found)
            rows[way][sample.family] = rows[way].get(sample.family, Counter()) + tally.counts
            say(
                f"{time.monotonic() - began:6.0f} s  {way:10} {sample.family}: {dict(tally.counts)}"
            )

        for sample in chosen:
            generator = random.Random(f"{seed} {sample.family}")
            attack("cut", sample, truncations(sample, amounts.places, generator))
            attack("flipped", sample, flips(sample, amounts.flips, amounts.aimed, generator))
        for sample in [*chosen, *(driest or [])]:
            labels = [Mutant(*each) for each in relabellings(sample.family, sample.content)]
            if labels:
                attack("relabelled", sample, labels)
        watched = process.watched
    checksums = {sample.family: sample.checksum for sample in chosen}
    return {
        "seed": seed,
        "duration_s": round(time.monotonic() - began, 1),
        "samples": {sample.family: sample.name for sample in chosen},
        "checksums": checksums,
        "summary": _summary(rows, checksums),
        "watched": asdict(watched),
        "rows": {way: {k: dict(v) for k, v in each.items()} for way, each in rows.items()},
        "found": found,
    }


def _summary(rows: dict[str, dict[str, Counter[str]]], checksums: dict[str, str]) -> dict[str, Any]:
    cut = sum(rows["cut"].values(), Counter())
    labels = sum(rows["relabelled"].values(), Counter())
    by_checksum = {}
    for checksum in (WHOLE, VALUES, NOTHING):
        for kind in ("anywhere", "aimed"):
            counts: Counter[str] = Counter()
            for family, counted in rows["flipped"].items():
                if checksums[family] == checksum:
                    counts += Counter(
                        {k.split()[1]: v for k, v in counted.items() if k.startswith(kind)}
                    )
            n = counts.total()
            if n:
                silent = n - counts["refused"] - counts["same"] - counts["apart"]
                most = RULE_OF_THREE / n if not silent else None
                by_checksum[f"{checksum}, {kind}"] = {
                    "n": n, **counts, "silent": silent, "95 % below": most}  # fmt: skip
    controls = labels.pop("control", 0)
    return {
        "cut": {"n": cut.total(), "accepted": cut["accepted"],
                "95 % below": RULE_OF_THREE / max(cut.total(), 1)},
        "flipped": by_checksum,
        "relabelled": {"n": labels.total(), "controls": controls, **labels},
    }  # fmt: skip


def untouched(folder: Path) -> dict[str, Any]:
    """Ingest every file there is as it is; give how many were refused, which should be none."""
    files = sorted(folder.glob("*/*"))
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, IngestProcess() as process:
        archive = Path(scratch, "archive")
        reasons = process.ingest(files, archive)
        with contextlib.closing(sqlite3.connect(archive / "index.sqlite")) as index:
            (frames,) = index.execute("SELECT count(*) FROM frames").fetchone()
        skipped = {path: why for path, why in reasons.items() if "beside it" in why}
        return {
            "n": len(files),
            "frames": frames,
            "skipped": len(skipped),
            "refused": {path: why for path, why in reasons.items() if path not in skipped},
            "duration_s": round(time.monotonic() - began, 1),
            "watched": asdict(process.watched),
        }


def tables(figures: dict[str, Any]) -> str:
    """Give the figures as tables in Markdown."""
    parts = []
    for way, rows in figures["rows"].items():
        columns = sorted({name for counts in rows.values() for name in counts})
        parts.append(f"| {way} | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
        for family, counts in rows.items():
            cells = [str(counts.get(name, 0)) for name in columns]
            parts.append(f"| {family} | " + " | ".join(cells) + " |")
        parts.append("")
    missed = Counter(
        each["what"]
        for each in figures["found"]
        if each["attack"] == "relabelled" and each["verdict"].endswith("missed")
    )
    parts += ["| missed | files |", "|---|---|"]
    parts += [f"| {what} | {count} |" for what, count in missed.most_common()]
    parts += ["", *(f"{name}: {json.dumps(figures[name])}" for name in figures if name in _TOLD)]
    return "\n".join(parts)


def corruption(
    folder: Path,
    *,
    seed: int = 0,
    only: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Prove on real files, of which all are ingested untouched too.

    ``bad`` counts what must not be: a file cut short that was taken, a crash, a hang, an untouched
    file or a control that was refused. Changed bytes that no format or contract can tell, and
    labels that were missed, are counted apart.
    """
    with tempfile.TemporaryDirectory() as scratch:
        chosen, driest = (
            [
                sample
                for sample in samples(folder, Path(scratch), driest=dry)
                if not only or sample.family.startswith(only)
            ]
            for dry in (False, True)
        )
    figures = prove(chosen, Amounts(), driest=driest, seed=seed, say=say)
    figures["untouched"] = untouched(folder)
    seen = [figures["watched"], figures["untouched"]["watched"]]
    figures["bad"] = (
        figures["summary"]["cut"]["accepted"]
        + figures["summary"]["relabelled"].get("control failed", 0)
        + len(figures["untouched"]["refused"])
        + sum(watched["crashes"] + watched["hangs"] for watched in seen)
    )
    return figures


def main() -> None:
    """Prove on real files, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", action="append", default=[], help="those that start with it")
    given = parser.parse_args()
    figures = corruption(
        given.folder,
        seed=given.seed,
        only=tuple(given.family),
        say=lambda line: print(line, flush=True),
    )
    print(tables(figures))
    if given.out:
        durable.write_json(given.out, figures)


if __name__ == "__main__":
    main()
