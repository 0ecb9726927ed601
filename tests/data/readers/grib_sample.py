"""GRIB files as MRMS (edition 2) and Stage IV (edition 1) have them, with chosen content."""

import io
import struct
from pathlib import Path

import numpy as np

# The first pixels of the national HRAP grid, and how many they are.
HRAP_FIRST = (23_117, -119_023)  # thousandths of a degree


def write_mrms(
    path,
    counts,
    *,
    reference=-30.0,
    binary=0,
    decimal=1,
    bits=16,
    discipline=209,
    centre=161,
    parameter=(6, 1),
    template=41,
    significance=3,
    forecast=0,
    date=(2019, 6, 10, 0, 2, 0),
    first=(54_995_000, 230_005_000),
    last=None,
    spacing=10_000,
    angle=(1, 1_000_000),
    scan=0,
    earth=2,
    bitmap=255,
    size=None,
    repeated=False,
):
    """Write counts, of a tenth of a millimetre per hour from -3, as a PNG in a message."""
    from PIL import Image

    counts = np.asarray(counts, np.uint8 if bits == 8 else np.uint16)
    rows, columns = size or counts.shape
    steps = (spacing * (rows - 1), spacing * (columns - 1))
    last = last or (_sign(first[0] - steps[0], 32), first[1] + steps[1])
    stream = io.BytesIO()
    Image.fromarray(counts).save(stream, "PNG")
    sections = [
        _section(1, ">HHBBBHBBBBBBB", centre, 0, 255, 1, significance, *date, 2, 7),
        _section(
            3,
            ">BIBBHBBIBIBIIIIIIIBIIIIB",
            *(0, rows * columns, 0, 0, 0),
            *(earth, 1, 6_367_470, 1, 6_378_160, 1, 6_356_775),
            *(columns, rows, *angle, *first, 48, *last, spacing, spacing, scan),
        ),
        _section(
            4,
            ">HHBBBBBHBBIBBIBBI",
            *(0, 0, *parameter, 8, 0, 97, 0, 0, 0, forecast, 102, 0, 0, 255, 1, 0),
        ),
        _section(
            5,
            ">IHfHHBB",
            *(rows * columns, template, reference, _sign(binary, 16), _sign(decimal, 16), bits, 0),
        ),
        _section(6, ">B", bitmap),
        _section(7, "", more=stream.getvalue()),
    ]
    body = b"".join(sections + sections[-1:] * repeated)
    heading = struct.pack(">4sHBBQ", b"GRIB", 0, discipline, 2, 16 + len(body) + 4)
    Path(path).write_bytes(heading + body + b"7777")
    return Path(path)


def write_stage4(
    path,
    counts,
    *,
    bits=12,
    binary=0,
    decimal=2,
    hours=1,
    first_hour=0,
    unit=1,
    kind=4,
    centre=7,
    table=2,
    parameter=61,
    date=(2005, 1, 1, 11, 0),
    first=HRAP_FIRST,
    orientation=-105_000,
    spacing=4763,
    scan=64,
    projection=5,
    pole=0,
    flags=0,
    with_grid=True,
):
    """Write counts of hundredths of a millimetre, -1 where there is none, by simple packing."""
    counts = np.asarray(counts)
    rows, columns = counts.shape
    year, month, day, hour, minute = date
    present = counts >= 0
    packed = counts[present].astype(np.uint32)
    shifts = np.arange(bits)[::-1]
    data = np.packbits((packed[:, None] >> shifts & 1).astype(np.uint8)).tobytes()
    unused = 8 * len(data) - packed.size * bits
    if len(data) % 2 == 0:  # a section has an even number of bytes
        data, unused = data + b"\0", unused + 8
    there = np.packbits(present).tobytes()
    there += bytes(len(there) % 2)
    parts = [
        struct.pack(
            ">BBBBBBBHBBBBBBBBBHBBBH",
            *(table, centre, 182, 255, 192 if with_grid else 64, parameter, 1, 0),
            *((year - 1) % 100 + 1, month, day, hour, minute, unit, first_hour, hours, kind),
            *(0, 0, (year - 1) // 100 + 1, 0, _sign(decimal, 16)),
        ),
        struct.pack(">BBBHH", 0, 255, projection, columns, rows)
        + b"".join(_three(number) for number in first)
        + b"\x08"
        + b"".join(_three(number) for number in (orientation, spacing, spacing))
        + bytes([pole, scan, 0, 0, 0, 0]),
        struct.pack(">BH", 8 * len(there) - counts.size, 0) + there,
        struct.pack(">BHIB", flags << 4 | unused, _sign(binary, 16), 0, bits) + data,
    ]
    body = b"".join(
        (len(part) + 3).to_bytes(3) + part for part in parts if with_grid or part is not parts[1]
    )
    message = b"GRIB" + (8 + len(body) + 4).to_bytes(3) + b"\x01" + body + b"7777"
    Path(path).write_bytes(message)
    return Path(path)


def _section(number, layout, *values, more=b""):
    content = struct.pack(layout or ">", *values) + more
    return struct.pack(">IB", len(content) + 5, number) + content


def _sign(number, bits):
    return number if number >= 0 else (1 << (bits - 1)) - number


def _three(number):
    return _sign(number, 24).to_bytes(3)
