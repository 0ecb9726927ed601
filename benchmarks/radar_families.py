"""Ingest every radar file there is by one command, and hold the archive against other decoders.

``python -m benchmarks.radar_families FOLDER [--archive A] [--out FILE.json]``, where FOLDER holds
one folder per family, as in ``$NOWCAST_SHARED_DATA/radar``. Prints a table in Markdown: reader,
frames, extremes, wet and missing part, grid, and against what the values were checked.
"""

import argparse
import gzip
import io
import json
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nowcast.conventions import grid_spacing, variable_of
from nowcast.data.archive import open_archive, partitions
from nowcast.data.readers import auxiliary, sniff

SAME = 2e-6  # largest difference that 32-bit floats explain, as a part of the value


def of_knmi(path: Path) -> Iterator[Any]:
    import h5py

    with h5py.File(path) as file:
        counts = file["image1/image_data"][...]
    yield np.where(counts >= 65534, np.nan, counts * 0.01 * 12)


def of_odim(path: Path) -> Iterator[Any]:
    import h5py

    with h5py.File(path) as file:
        raw, what = file["dataset1/data1/data"][...], file["dataset1/what"].attrs
        values = np.where(raw == what["undetect"], 0, raw * what["gain"] + what["offset"])
        yield np.where(raw == what["nodata"], np.nan, values)


def of_fmi_pgm(path: Path) -> Iterator[Any]:
    from pysteps.io.importers import import_fmi_pgm

    yield np.clip(import_fmi_pgm(str(path), gzipped=True)[0], 0, None)


def of_mch(path: Path) -> Iterator[Any]:
    from pysteps.io.importers import import_mch_gif

    yield import_mch_gif(str(path), "AQC", "mm", 5)[0] * 12


def of_bom(path: Path) -> Iterator[Any]:
    import netCDF4

    with netCDF4.Dataset(path) as file:
        precipitation = file["precipitation"]
        yield np.ma.filled(precipitation[...].astype(float), np.nan).squeeze() * 10


def of_mrms(path: Path) -> Iterator[Any]:
    """MRMS packs its values as a PNG, in section 7, by the factors of section 5."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    content, at, sections = path.read_bytes(), 16, {}
    while content[at : at + 4] != b"7777":
        length, number = struct.unpack(">IB", content[at : at + 5])
        sections[number] = content[at : at + length]
        at += length
    (reference,) = struct.unpack(">f", sections[5][11:15])
    binary, decimal = (_signed(sections[5][n : n + 2]) for n in (15, 17))
    packed = np.asarray(Image.open(io.BytesIO(sections[7][5:])), np.float64)
    values = (reference + packed * 2.0**binary) / 10.0**decimal
    yield np.where(values < 0, np.nan, values)


def of_radolan(path: Path) -> Iterator[Any]:
    content = gzip.decompress(path.read_bytes())
    header, _, body = content.partition(b"\x03")
    if header.startswith(b"RX"):
        counts = np.frombuffer(body, np.uint8).reshape(900, 900)
        yield np.where(counts == 250, np.nan, np.clip(counts / 2 - 32.5, 0, None))
        return
    words = np.frombuffer(body, "<u2").reshape(900, 900)
    factor = 0.1 if header.startswith(b"RW") else 0.01 * 12
    yield np.where(words & 0x2000, np.nan, (words & 0x0FFF) * factor)


def of_meteonet(path: Path) -> Iterator[Any]:
    with np.load(path, allow_pickle=True) as file:
        data, miss = file["data"], -1 if "rainfall" in path.name else 255
        factor = 0.12 if "rainfall" in path.name else 1.0
        for frame in data:
            values = np.clip(frame.astype(float) * factor, 0, None)
            yield np.where(frame == miss, np.nan, values)


OTHERS: dict[str, tuple[str, Callable[[Path], Iterator[Any]]]] = {
    "knmi": ("raw h5py", of_knmi),
    "odim": ("raw h5py", of_odim),
    "fmi_pgm": ("pysteps", of_fmi_pgm),
    "mch": ("pysteps", of_mch),
    "bom": ("netCDF4", of_bom),
    "mrms": ("PNG by Pillow", of_mrms),
    "radolan": ("raw NumPy", of_radolan),
    "meteonet": ("raw NumPy", of_meteonet),
}


SENDERS = {
    "bom": "bom",
    "dwd": "radolan",
    "fmi": "fmi_pgm",
    "knmi": "knmi",
    "meteo-france": "meteonet",
    "meteoswiss": "mch",
    "noaa": "mrms",
    "opera": "odim",
}


def _signed(two_bytes: bytes) -> int:
    number = int.from_bytes(two_bytes, "big")
    return -(number & 0x7FFF) if number & 0x8000 else number


def ingested(folder: Path, archive: Path) -> None:
    """Run the one command on everything in the folder's folders."""
    files = sorted(str(path) for path in folder.glob("*/*"))
    nowcast = Path(sys.executable).with_name("nowcast")
    command = [str(nowcast), "ingest", *files, "--archive", str(archive)]
    print(f"$ nowcast ingest {folder}/*/* --archive {archive}", flush=True)
    subprocess.run(command, check=False)


def families(folder: Path) -> dict[tuple[str, str], list[Path]]:
    """Give the files of each family and product, by reader and what their names begin with."""
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(folder.glob("*/*")):
        if not auxiliary(path):
            reader = sniff(path)
            product = path.name[:8] if reader in ("radolan", "meteonet") else ""
            found.setdefault((reader, product), []).append(path)
    return found


def row(part: str, archive: Path, files: dict[tuple[str, str], list[Path]]) -> dict[str, Any]:
    """Measure one partition frame by frame, and compare each frame with another decoder's."""
    observed = open_archive(archive, source=part)
    name = variable_of(observed)
    reader, own = _files_of(part, observed.sizes["time"], files)
    label, decode = OTHERS[reader]
    others = (frame for path in own for frame in decode(path))
    told: dict[str, list[float]] = {key: [] for key in ("min", "max", "wet", "missing")}
    differing = aside = 0
    for frame in observed[name]:
        values, other = frame.values, np.asarray(next(others), np.float32)
        seen = np.isfinite(values)
        told["missing"].append(1 - seen.mean())
        told["wet"].append((values[seen] > 0).mean())
        told["min"].append(values[seen].min())
        told["max"].append(values[seen].max())
        aside += int((~seen & np.isfinite(other)).sum())
        differing += _differing(values, other)
    figures = {key: float(np.mean(list_)) for key, list_ in told.items()}
    figures |= {"min": float(min(told["min"])), "max": float(max(told["max"]))}
    unit = observed["x"].attrs["units"]
    spacing = f"{grid_spacing(observed):.6g} {'m' if unit == 'm' else 'degrees'}"
    grid = f"{observed.sizes['y']} x {observed.sizes['x']}, {spacing}"
    units = observed[name].attrs["units"]
    return {"partition": part, "reader": reader, "frames": observed.sizes["time"],
            "variable": name, "units": units, **figures, "grid": grid, "checked": label,
            "differing": differing, "set_aside": aside}  # fmt: skip


def _differing(values: Any, other: Any) -> int:
    """Count pixels that differ, but for those that the reader set aside as absurd."""
    both = np.isfinite(values) & np.isfinite(other)
    apart = ~np.isclose(values[both], other[both], rtol=SAME, atol=1e-5)
    return int(apart.sum()) + int((np.isfinite(values) & ~np.isfinite(other)).sum())


def _files_of(
    part: str, frames: int, files: dict[tuple[str, str], list[Path]]
) -> tuple[str, list[Path]]:
    source, product, _ = part.split("/")
    for (reader, beginning), own in files.items():
        kind = beginning.removeprefix("raa01-").split("_")[0]
        if reader == SENDERS[source] and kind in product:
            return reader, own
    raise SystemExit(f"no files for {part} ({frames} frames) among {sorted(files)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    archive = given.archive or Path(tempfile.mkdtemp()) / "archive"
    ingested(given.folder, archive)
    files = families(given.folder)
    rows = [row(part, archive, files) for part in partitions(archive)]
    keys = list(rows[0])
    print("| " + " | ".join(keys) + " |\n|" + "---|" * len(keys))
    for one in rows:
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in one.values()]
        print("| " + " | ".join(cells) + " |")
    if given.out:
        given.out.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
