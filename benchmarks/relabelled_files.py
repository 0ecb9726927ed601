"""Radar files with false labels: written anew in their own format, readable and whole.

Each is what a sender could send by mistake: another unit, scale, offset or code for missing, a
grid that is moved, turned or of another ellipsoid, a time that is not the frame's. Where a format
keeps no label, the values are what is changed. The first of each file has its true labels, and
proves that it is not the rewriting which an archive refuses.
"""

import datetime
import gzip
import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

NO_LABELS = "control: its true labels"
VALUES_CHANGED = "(values)"  # ends what was done where the labels stay and the values change
MARSHALL_PALMER = (200.0, 1.6)

Edit = Callable[[Any], Any]  # of what holds the labels, in place or given back
Counts = Callable[[Any], Any]


@dataclass(frozen=True)
class Coding:
    """What the numbers in a file mean.

    Parameters
    ----------
    gain, offset
        To mm/h or dBZ.
    missing
        Tells which numbers are not observed.
    dry, nodata
        The numbers that are written for dry and for not observed.
    least, most
        Numbers that can be written.
    reflectivity
        Whether they are dBZ.
    """

    gain: float
    offset: float
    missing: Counts
    dry: float
    nodata: float
    least: float
    most: float
    reflectivity: bool = False

    def values(self, counts: Any) -> Any:
        """Give mm/h or dBZ."""
        return counts * self.gain + self.offset

    def counts(self, values: Any) -> Any:
        """Give the nearest numbers that can be written."""
        counts = (values - self.offset) / self.gain
        whole = counts if self.least == -np.inf else np.rint(counts)
        return np.clip(whole, self.least, self.most)


@dataclass(frozen=True)
class SwissCoding(Coding):
    """MeteoSwiss's codes, which count half decibels of Z = 316 R^1.5 with R in mm per 5 min."""

    def values(self, counts: Any) -> Any:
        """Give mm/h."""
        amounts = (10 ** ((counts - 71.5) / 20.0) / 316.0) ** (1 / 1.5) * 12
        return np.where(counts <= 1, 0.0, amounts)

    def counts(self, values: Any) -> Any:
        """Give the nearest codes."""
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = 71.5 + 20 * np.log10(316.0 * (values / 12) ** 1.5)
        return np.clip(np.rint(np.nan_to_num(codes, neginf=0.0)), 0, 250)


@dataclass(frozen=True)
class RadolanCoding(Coding):
    """DWD's counts of twelve bits, with marks above them."""

    def values(self, counts: Any) -> Any:
        """Give mm/h or dBZ."""
        return super().values(counts.astype(np.int64) & 0x0FFF)


def relabellings(family: str, raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Give what was done, and the file with it; none for families that are not rewritten here."""
    if family not in _FORMS:
        return
    rewrite, coding, labels = _FORMS[family]
    yield NO_LABELS, rewrite(raw, None, np.copy)
    for what, edit in labels.items():
        label, counts = edit if isinstance(edit, tuple) else (edit, None)
        yield what, rewrite(raw, label, counts)
    for what, change in _of_values(coding).items():
        yield f"{what} {VALUES_CHANGED}", rewrite(raw, None, change)


def _of_values(coding: Coding) -> dict[str, Counts]:
    """Give changes of the numbers under a label that stays."""
    recoded = partial(partial, _recoded, coding=coding)
    factors = {"gain: x 12": 12.0, "gain: / 12": 1 / 12, "gain: x 0.1": 0.1, "gain: x 10": 10.0}
    return {
        **{what: recoded(change=partial(np.multiply, by)) for what, by in factors.items()},
        "unit: dBZ and mm/h": recoded(change=_rate if coding.reflectivity else _reflectivity),
        "offset: + 32": recoded(change=partial(np.add, 32.0), also_dry=True),
        "offset: - 32": recoded(change=partial(np.add, -32.0), also_dry=True),
        "nodata: swapped with dry": partial(_swapped, coding=coding),
    }


def _rate(dbz: Any) -> Any:
    a, b = MARSHALL_PALMER
    return (10 ** (dbz / 10) / a) ** (1 / b)


def _reflectivity(rate: Any) -> Any:
    a, b = MARSHALL_PALMER
    return 10 * np.log10(a * rate**b)


def _recoded(counts: Any, *, coding: Coding, change: Counts, also_dry: bool = False) -> Any:
    changed = np.array(counts)
    values = coding.values(counts.astype(np.float64))
    chosen = ~coding.missing(counts) & ((values > 0) | also_dry)
    if also_dry:
        values = np.maximum(values, 0.0)
    changed[chosen] = coding.counts(change(values[chosen])).astype(counts.dtype)
    return changed


def _swapped(counts: Any, *, coding: Coding) -> Any:
    missing = coding.missing(counts)
    dry = ~missing & (coding.values(counts.astype(np.float64)) <= 0)
    return np.where(missing, coding.dry, np.where(dry, coding.nodata, counts)).astype(counts.dtype)


def _upside_down(counts: Any) -> Any:
    return np.flip(counts, axis=-2)


def _one_row(counts: Any) -> Any:
    return np.roll(counts, 1, axis=-2)


def _turned(counts: Any) -> Any:
    return np.swapaxes(counts, -1, -2)


_DATA_GRID: dict[str, Any] = {  # for formats that do not say where their pixels lie
    "grid: flipped (values)": (None, _upside_down),
    "grid: one pixel (values)": (None, _one_row),
}


# HDF5 -----------------------------------------------------------------------------------------


def _hdf5(raw: bytes, label: Edit | None, counts: Counts | None, *, path: str) -> bytes:
    import h5py

    stream = io.BytesIO(raw)
    with h5py.File(stream, "r+") as file:
        if label:
            label(file)
        if counts:
            _replace(file, path, counts(file[path][...]))
    return stream.getvalue()


def _replace(file: Any, path: str, numbers: Any) -> None:
    stored = file[path]
    if stored.shape == numbers.shape:
        stored[...] = numbers
        return
    attributes = dict(stored.attrs)
    del file[path]
    file.create_dataset(path, data=numbers, chunks=numbers.shape, compression="gzip")
    file[path].attrs.update(attributes)


def _set(place: str, **attributes: Any) -> Edit:
    def edit(file: Any) -> None:
        for name, value in attributes.items():
            old = file[place].attrs[name]
            new = value(old) if callable(value) else value
            file[place].attrs[name] = np.bytes_(new) if isinstance(new, str) else new

    return edit


def _all(*edits: Edit) -> Edit:
    def edit(file: Any) -> None:
        for each in edits:
            each(file)

    return edit


def _one(value: Any) -> Any:
    return np.ravel(value)[0]


def _knmi_later(seconds: int, names: tuple[str, ...] = ("start", "end")) -> Edit:
    def later(old: Any) -> str:
        at = datetime.datetime.strptime(_one(old).decode(), "%d-%b-%Y;%H:%M:%S.%f")
        return f"{at + datetime.timedelta(seconds=seconds):%d-%b-%Y;%H:%M:%S}.000".upper()

    return _set("overview", **{f"product_datetime_{name}": later for name in names})


def _knmi_earth(old: Any) -> str:
    return str(_one(old).decode()).replace("a=6378.137 +b=6356.752", "a=6378.388 +b=6356.912")


def _knmi_swap(file: Any) -> None:
    geographic = file["geographic"].attrs
    for one, other in (("geo_number_rows", "geo_number_columns"),
                       ("geo_row_offset", "geo_column_offset")):  # fmt: skip
        geographic[one], geographic[other] = geographic[other], geographic[one]


_CALIBRATION, _GEOGRAPHIC = "image1/calibration", "geographic"
_KNMI: dict[str, Any] = {
    "unit: dBZ": _set("image1", image_geo_parameter="REFLECTIVITY_[DBZ]"),
    "unit: mm/h": _set("image1", image_geo_parameter="PRECIPITATION_RATE_[MM/H]"),
    "gain: x 12": _set(_CALIBRATION, calibration_formulas="GEO=0.12*PV+0.0"),
    "gain: / 12": _set(_CALIBRATION, calibration_formulas="GEO=0.000833333*PV+0.0"),
    "gain: x 0.1": _set(_CALIBRATION, calibration_formulas="GEO=0.001*PV+0.0"),
    "offset: + 32": _set(_CALIBRATION, calibration_formulas="GEO=0.01*PV+32.0"),
    "offset: - 32": _set(_CALIBRATION, calibration_formulas="GEO=0.01*PV+-32.0"),
    "nodata: swapped with dry": _set(
        _CALIBRATION, calibration_missing_data=[0], calibration_out_of_image=[0]
    ),
    "grid: one pixel": _set(_GEOGRAPHIC, geo_row_offset=lambda old: old + 1),
    "grid: one column": _set(_GEOGRAPHIC, geo_column_offset=lambda old: old + 1),
    "grid: flipped": _set(_GEOGRAPHIC, geo_pixel_size_y=lambda old: -old),
    "grid: x and y swapped": (_knmi_swap, _turned),
    "grid: other ellipsoid": _set(
        "geographic/map_projection", projection_proj4_params=_knmi_earth
    ),
    "grid: half the spacing": _set(
        _GEOGRAPHIC, geo_pixel_size_x=lambda old: old / 2, geo_pixel_size_y=lambda old: old / 2
    ),
    "time: 30 s": _knmi_later(30),
    "time: an hour": _knmi_later(3600),
    "time: interval doubled": _knmi_later(-300, ("start",)),
}  # fmt: skip


def _odim_later(seconds: int) -> Edit:
    def edit(file: Any) -> None:
        for place, prefix in (("what", ""), *((f"dataset{n}/what", p) for n in (1, 2)
                                              for p in ("start", "end"))):  # fmt: skip
            attributes = file[place].attrs
            text = (attributes[f"{prefix}date"] + attributes[f"{prefix}time"]).decode()
            at = datetime.datetime.strptime(text, "%Y%m%d%H%M%S")
            at += datetime.timedelta(seconds=seconds)
            attributes[f"{prefix}date"] = np.bytes_(f"{at:%Y%m%d}")
            attributes[f"{prefix}time"] = np.bytes_(f"{at:%H%M%S}")

    return edit


def _odim_moved(*, metres: float = 0.0, ellipsoid: str = "WGS84") -> Edit:
    """Move the whole grid, corners too, so that it agrees with itself."""

    def edit(file: Any) -> None:
        from pyproj import CRS, Transformer

        where = file["where"].attrs
        projection = where["projdef"].decode()
        old = CRS.from_user_input(projection)
        projection = projection.replace("WGS84", ellipsoid)
        new = CRS.from_user_input(projection)
        to_plane = Transformer.from_crs(old.geodetic_crs, old, always_xy=True)
        to_angles = Transformer.from_crs(new, new.geodetic_crs, always_xy=True)
        for corner in ("LL", "LR", "UL", "UR"):
            x, y = to_plane.transform(where[f"{corner}_lon"], where[f"{corner}_lat"])
            where[f"{corner}_lon"], where[f"{corner}_lat"] = to_angles.transform(x + metres, y)
        where["projdef"] = np.bytes_(projection)

    return edit


def _odim_flip(file: Any) -> None:
    where = file["where"].attrs
    for side in ("L", "R"):
        for part in ("lon", "lat"):
            upper, lower = f"U{side}_{part}", f"L{side}_{part}"
            where[upper], where[lower] = where[lower], where[upper]


def _odim_swap(file: Any) -> None:
    where = file["where"].attrs
    where["xsize"], where["ysize"] = where["ysize"], where["xsize"]
    _replace(file, "dataset2/data1/data", _turned(file["dataset2/data1/data"][...]))


def _odim_codes(file: Any) -> None:
    what = file["dataset1/what"].attrs
    what["nodata"], what["undetect"] = what["undetect"], what["nodata"]


_WHAT = "dataset1/what"
_ODIM: dict[str, Any] = {
    "unit: dBZ": _set(_WHAT, quantity="DBZH"),
    "unit: an amount": _set(_WHAT, quantity="ACRR"),
    "gain: x 12": _set(_WHAT, gain=12.0),
    "gain: / 12": _set(_WHAT, gain=1 / 12),
    "gain: x 0.1": _set(_WHAT, gain=0.1),
    "offset: + 32": _set(_WHAT, offset=32.0),
    "offset: - 32": _set(_WHAT, offset=-32.0),
    "nodata: swapped with dry": _odim_codes,
    "grid: one pixel": _odim_moved(metres=2000.0),
    "grid: one pixel, corners kept": _set(
        "where", projdef=lambda old: old.decode().replace("1950000.0", "1952000.0")
    ),
    "grid: flipped": _odim_flip,
    "grid: x and y swapped": (_odim_swap, _turned),
    "grid: other ellipsoid": _odim_moved(ellipsoid="intl"),
    "grid: half the spacing": _set("where", xscale=1000.0, yscale=1000.0),
    "time: 30 s": _odim_later(30),
    "time: an hour": _odim_later(3600),
    "time: interval doubled": _set(_WHAT, starttime="173500"),
}


def _bom_axis(change: Counts) -> Edit:
    def edit(file: Any) -> None:
        _replace(file, "y", change(file["y"][...]))
        file["y"].attrs["valid_min"] = file["y"][...].min(keepdims=True)
        file["y"].attrs["valid_max"] = file["y"][...].max(keepdims=True)

    return edit


def _bom_spacing(file: Any) -> None:
    for name in ("x", "y"):
        for bound in ("valid_min", "valid_max"):
            file[name].attrs[bound] = file[name].attrs[bound] / 2
        file[name][...] = file[name][...] / 2


def _bom_swap(file: Any) -> None:
    x, y = file["x"][...], file["y"][...]
    file["x"][...], file["y"][...] = y, x
    for bound in ("valid_min", "valid_max"):
        one, other = file["x"].attrs[bound], file["y"].attrs[bound]
        file["x"].attrs[bound], file["y"].attrs[bound] = other, one


def _bom_later(seconds: int, names: tuple[str, ...] = ("start_time", "valid_time")) -> Edit:
    def edit(file: Any) -> None:
        for name in names:
            file[name][...] = file[name][...] + seconds

    return edit


_AMOUNT = "precipitation"
_BOM: dict[str, Any] = {
    "unit: dBZ": _set(_AMOUNT, units="dBZ"),
    "unit: mm/h": _set(_AMOUNT, units="mm h-1"),
    "gain: x 12": _set(_AMOUNT, scale_factor=[0.6]),
    "gain: / 12": _set(_AMOUNT, scale_factor=[0.05 / 12]),
    "gain: x 0.1": _set(_AMOUNT, scale_factor=[0.005]),
    "offset: + 32": _set(_AMOUNT, add_offset=[32.0]),
    "offset: - 32": _set(_AMOUNT, add_offset=[-32.0]),
    "nodata: dry is missing": _set(_AMOUNT, _FillValue=np.zeros(1, "i2")),
    "grid: one pixel": _bom_axis(lambda y: y + np.float32(0.5)),
    "grid: flipped": _bom_axis(lambda y: y[::-1]),
    "grid: x and y swapped": _bom_swap,
    "grid: other ellipsoid": _set("proj", semi_major_axis=[6378388.0], inverse_flattening=[297.0]),
    "grid: half the spacing": _bom_spacing,
    "grid: metres for kilometres": _all(_set("x", units="m"), _set("y", units="m")),
    "time: 30 s": _bom_later(30),
    "time: an hour": _bom_later(3600),
    "time: interval doubled": _bom_later(-360, ("start_time",)),
}

_RAIN = "rain_rate"
_CF: dict[str, Any] = {
    "unit: dBZ": _set(_RAIN, units="dBZ"),
    "unit: mm/s": _set(_RAIN, units="mm s-1"),
    "unit: an amount": _set(_RAIN, units="mm"),
    "grid: one pixel": lambda file: _replace(file, "y", 2 * file["y"][...] - file["y"][...][::-1]),
    "grid: flipped": lambda file: _replace(file, "y", file["y"][...][::-1]),
    "time: 30 s": lambda file: _replace(file, "time", file["time"][...] + 30),
    "time: an hour": lambda file: _replace(file, "time", file["time"][...] + 3600),
}


# A header of text, then numbers ---------------------------------------------------------------


def _text_then_numbers(
    raw: bytes, label: Edit | None, counts: Counts | None, *, end: Callable[[bytes], int], kind: str
) -> bytes:
    unpacked = gzip.decompress(raw)
    header, body = unpacked[: end(unpacked)], unpacked[end(unpacked) :]
    if counts:
        body = counts(np.frombuffer(body, kind).reshape(_shape(header))).astype(kind).tobytes()
    return gzip.compress((label(header) if label else header) + body, 1, mtime=0)


def _shape(header: bytes) -> tuple[int, int]:
    square = re.search(rb"GP *(\d+)x *(\d+)", header)
    if square:
        return int(square[1]), int(square[2])
    columns, rows = header.split(b"\n")[-3].split()
    return int(rows), int(columns)


def _end_of_pgm(raw: bytes) -> int:
    return raw.index(b"\n255\n") + 5


def _end_of_radolan(raw: bytes) -> int:
    return raw.index(b"\x03") + 1


def _text(*pairs: tuple[str, str]) -> Edit:
    def edit(header: bytes) -> bytes:
        for old, new in pairs:
            header, count = re.subn(old.encode(), new.encode(), header, count=1)
            if not count:
                raise SystemExit(f"{old!r} is not in the header {header[:200]!r}")
        return header

    return edit


def _fmi_later(minutes: int) -> Edit:
    def edit(header: bytes) -> bytes:
        found = re.search(rb"obstime (\d{12})", header)
        assert found
        at = datetime.datetime.strptime(found[1].decode(), "%Y%m%d%H%M")
        at += datetime.timedelta(minutes=minutes)
        return header.replace(found[0], f"obstime {at:%Y%m%d%H%M}".encode())

    return edit


_FMI: dict[str, Any] = {
    "unit: mm/h": _text(("CorrectedReflectivity", "RainRate")),
    "grid: one pixel": _text((r"bottomleft 18\.600000 57\.930000", "bottomleft 18.6 57.939")),
    "grid: flipped": _text(
        (r"bottomleft 18\.600000 57\.930000", "bottomleft 18.600000 69.005000"),
        (r"topright 34\.903000 69\.005000", "topright 34.903000 57.930000"),
    ),
    "grid: x and y swapped": (_text((r"\n760 1226\n", "\n1226 760\n")), _turned),
    "grid: other parallel": _text(("truelatitude 60", "truelatitude 65")),
    "grid: half the spacing": _text(
        (r"metersperpixel_x 999\.67", "metersperpixel_x 499.83"),
        (r"metersperpixel_y 999\.62", "metersperpixel_y 499.81"),
    ),
    "time: a minute": _fmi_later(1),
    "time: an hour": _fmi_later(60),
}


def _radolan_later(minutes: int) -> Edit:
    def edit(header: bytes) -> bytes:
        clock = int(header[4:6]) * 60 + int(header[6:8]) + minutes
        return header[:4] + f"{clock // 60 % 24:02}{clock % 60:02}".encode() + header[8:]

    return edit


def _radolan(*, minutes: int, other: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    words = f"INT{minutes:4d}"
    return {
        f"unit: product for {other[0][1]}": _text(other[0]),
        f"unit: {other[0][1]} throughout": _text(*other),
        "gain: x 0.1": _text((r"PR E[+-]\d\d", "PR E-03")),
        "time: interval": _text((words, "INT  15" if minutes != 15 else words)),
        "grid: other grid": _text(("GP 900x 900", "GP1100x 900")),
        "grid: other ellipsoid": _text(("VS 3", "VS 5")),
        "time: a minute": _radolan_later(1),
        "time: an hour": _radolan_later(60),
        **_DATA_GRID,
        "grid: x and y swapped (values)": (None, _turned),
    }


_RW = _radolan(minutes=60, other=(("RW", "RY"), ("E-01", "E-02"), ("INT  60", "INT   5")))
_RY = _radolan(minutes=5, other=(("RY", "RW"), ("E-02", "E-01"), ("INT   5", "INT  60")))
_RX = _radolan(minutes=5, other=(("RX", "RY"), (r"E\+00", "E-02")))


# GIF, GRIB2 and npz ---------------------------------------------------------------------------


def _gif(raw: bytes, label: Edit | None, counts: Counts | None) -> bytes:
    """Write the palette and frame of a GIF anew, as MeteoSwiss lays it out."""
    from PIL import Image

    with Image.open(io.BytesIO(raw)) as image:
        codes, comment = np.asarray(image), image.info["comment"]
    codes = counts(codes) if counts else codes
    comment = label(comment) if label else comment
    rows, columns = codes.shape
    drawn = Image.fromarray(np.ascontiguousarray(codes))
    palette = raw[13 : 13 + 768]
    drawn.putpalette(palette)
    stream = io.BytesIO()
    drawn.save(stream, "GIF", optimize=False, interlace=0)
    written = stream.getvalue()
    place = b",\0\0\0\0" + struct.pack("<HH", columns, rows)
    parts = [comment[at : at + 255] for at in range(0, len(comment), 255)]
    said = b"!\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
    screen = raw[:6] + struct.pack("<HH", columns, rows) + raw[10:13]
    return screen + palette + said + written[written.index(place) :]


def _mch_later(minutes: int) -> Edit:
    def edit(comment: bytes) -> bytes:
        found = re.search(rb"PRDT=AQC(\d{9})", comment)
        assert found
        at = datetime.datetime.strptime(found[1].decode(), "%y%j%H%M")
        at += datetime.timedelta(minutes=minutes)
        return comment.replace(found[1], f"{at:%y%j%H%M}".encode(), 1)

    return edit


_MCH: dict[str, Any] = {
    "unit: another scale": _text(("mmh2LASSEN8bitmm_mn", "dbZ")),
    "time: interval": _text(("ACCUm=000005", "ACCUm=000060")),
    "time: a minute": _mch_later(1),
    "time: an hour": _mch_later(60),
    "grid: x and y swapped": (None, _turned),
    **_DATA_GRID,
}


def _grib(raw: bytes, label: Edit | None, counts: Counts | None) -> bytes:
    from PIL import Image

    place, sections = 16, {}
    while place < len(raw) - 4:
        length, number = struct.unpack_from(">IB", raw, place)
        sections[number] = bytearray(raw[place : place + length])
        place += length
    if label:
        label(sections)
    if counts:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        numbers = np.asarray(Image.open(io.BytesIO(sections[7][5:])))
        Image.MAX_IMAGE_PIXELS = limit
        stream = io.BytesIO()
        Image.fromarray(counts(numbers).astype(numbers.dtype)).save(stream, "PNG", compress_level=1)
        image = stream.getvalue()
        sections[7] = bytearray(struct.pack(">IB", 5 + len(image), 7) + image)
    body = b"".join(bytes(section) for _, section in sorted(sections.items()))
    return raw[:8] + struct.pack(">Q", 16 + len(body) + 4) + body + b"7777"


def _at(number: int, place: int, layout: str, change: Callable[[Any], Any]) -> Edit:
    def edit(sections: dict[int, bytearray]) -> None:
        (old,) = struct.unpack_from(layout, sections[number], place)
        struct.pack_into(layout, sections[number], place, change(old))

    return edit


def _mrms_later(seconds: int) -> Edit:
    def edit(sections: dict[int, bytearray]) -> None:
        at = datetime.datetime(*struct.unpack_from(">HBBBBB", sections[1], 12))
        at += datetime.timedelta(seconds=seconds)
        struct.pack_into(">HBBBBB", sections[1], 12, *at.timetuple()[:6])

    return edit


def _mrms_finer(sections: dict[int, bytearray]) -> None:
    columns, rows = struct.unpack_from(">II", sections[3], 30)
    latitude, longitude = struct.unpack_from(">II", sections[3], 46)
    ends = (latitude - 5000 * (rows - 1), longitude + 5000 * (columns - 1), 5000, 5000)
    struct.pack_into(">IIII", sections[3], 55, *ends)


_MRMS: dict[str, Any] = {
    "unit: another quantity": _at(4, 10, ">B", lambda _: 2),
    "gain: x 0.1": _at(5, 17, ">H", lambda _: 2),
    "gain: x 10": _at(5, 17, ">H", lambda _: 0),
    "gain: x 16": _at(5, 15, ">H", lambda _: 4),
    "offset: + 32": _at(5, 11, ">f", lambda old: old + 320),
    "offset: - 32": _at(5, 11, ">f", lambda old: old - 320),
    "grid: one pixel": _all(
        _at(3, 46, ">I", lambda old: old + 10_000), _at(3, 55, ">I", lambda old: old + 10_000)
    ),
    "grid: flipped": _at(3, 71, ">B", lambda _: 64),
    "grid: other ellipsoid": _at(3, 14, ">B", lambda old: 5 if old != 5 else 4),
    "grid: half the spacing": _mrms_finer,
    "time: 30 s": _mrms_later(30),
    "time: an hour": _mrms_later(3600),
}


def _npz(raw: bytes, label: Edit | None, counts: Counts | None) -> bytes:
    with np.load(io.BytesIO(raw), allow_pickle=True) as held:  # a file of our own
        arrays = {name: held[name] for name in held.files}
    if label:
        label(arrays)
    if counts:
        arrays["data"] = np.ascontiguousarray(counts(arrays["data"]))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=array.dtype.hasobject)
    return stream.getvalue()


def _npz_later(seconds: int) -> Edit:
    def edit(arrays: dict[str, Any]) -> None:
        for name in ("dates", "miss_dates"):
            arrays[name] = arrays[name] + datetime.timedelta(seconds=seconds)

    return edit


def _codes(old: int, new: int) -> Counts:
    return lambda counts: np.where(counts == old, new, counts).astype(counts.dtype)


_METEONET: dict[str, Any] = {
    "time: 30 s": _npz_later(30),
    "time: an hour": _npz_later(3600),
    **_DATA_GRID,
}


_FORMS: dict[str, tuple[Callable[..., bytes], Coding, dict[str, Any]]] = {
    "knmi": (
        partial(_hdf5, path="image1/image_data"),
        Coding(0.12, 0.0, lambda c: c >= 65534, 0, 65535, 0, 65533),
        _KNMI,
    ),
    "odim": (
        partial(_hdf5, path="dataset1/data1/data"),
        Coding(1.0, 0.0, lambda c: c < -9e6, -8888000.0, -9999000.0, -np.inf, np.inf),
        _ODIM,
    ),
    "bom": (
        partial(_hdf5, path=_AMOUNT),
        Coding(0.5, 0.0, lambda c: c < -32700, 0, -32768, -32767, 32767),
        _BOM,
    ),
    "cf netCDF-4": (
        partial(_hdf5, path=_RAIN),
        Coding(1.0, 0.0, np.isnan, 0.0, np.nan, -np.inf, np.inf),
        _CF,
    ),
    "fmi_pgm": (
        partial(_text_then_numbers, end=_end_of_pgm, kind="u1"),
        Coding(0.5, -32.0, lambda c: c == 255, 0, 255, 0, 254, reflectivity=True),
        _FMI,
    ),
    **{
        f"radolan {product}": (
            partial(_text_then_numbers, end=_end_of_radolan, kind="<u2"),
            RadolanCoding(gain, 0.0, lambda c: (c & 0xA000) > 0, 0, 0x29C4, 0, 4095),
            labels,
        )
        for product, gain, labels in (("rw", 0.1, _RW), ("ry", 0.12, _RY))
    },
    "radolan rx": (
        partial(_text_then_numbers, end=_end_of_radolan, kind="u1"),
        Coding(0.5, -32.5, lambda c: c > 248, 0, 250, 0, 248, reflectivity=True),
        _RX,
    ),
    "mch": (_gif, SwissCoding(1.0, 0.0, lambda c: c > 250, 0, 255, 0, 250), _MCH),
    "mrms": (_grib, Coding(0.1, -3.0, lambda c: (c == 0) | (c == 20), 30, 0, 0, 65535), _MRMS),
    "meteonet rainfall": (
        _npz,
        Coding(0.12, 0.0, lambda c: c == -1, 0, -1, -32768, 32767),
        {**_METEONET, "unit: dBZ": (None, _codes(-1, 255))},
    ),
    "meteonet reflecti": (
        _npz,
        Coding(1.0, 0.0, lambda c: c == 255, 0, 255, 0, 70, reflectivity=True),
        {**_METEONET, "unit: mm/h": (None, _codes(255, -1))},
    ),
}
