"""Files in the format of MeteoNet, with chosen content."""

import datetime
import io
import pickle
import zipfile

import numpy as np

SHAPE = (565, 784)
FIRST = datetime.datetime(2016, 8, 21, 0, 10)


def times(count, *, first=FIRST, minutes=5):
    """Give times, from the first on."""
    return [first + datetime.timedelta(minutes=minutes * index) for index in range(count)]


def rainfall(count=3):
    """Give hundredths of a millimetre, mostly dry, -1 beyond the radars; each frame is another."""
    generator = np.random.default_rng(0)
    frame = generator.integers(1, 200, SHAPE).astype("<i2")
    frame[generator.random(SHAPE) < 0.9] = 0
    return _moving(frame, count, missing=-1)


def reflectivity(count=3):
    """Give lower bounds of classes in dBZ, 255 beyond the radars; each frame is another."""
    levels = np.array([0] * 20 + [8, 16, *range(20, 71)], "<i2")
    frame = np.random.default_rng(0).choice(levels, SHAPE)
    return _moving(frame, count, missing=255)


def _moving(frame, count, *, missing):
    counts = np.stack([np.roll(frame, shift, axis=0) for shift in range(count)])
    counts[:, :60] = missing
    return counts


def pickled(dates, *, protocol=3):
    """Give an array of dates as NumPy saves it: a header, and a pickle."""
    array = np.array(dates, dtype=object)
    stream = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + pickle.dumps(array, protocol=protocol)


def npy(array):
    """Give an array of numbers as NumPy saves it."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def write_meteonet(path, counts, *, at=None, missing=(), protocol=3, **members):
    """Write counts and their dates; `members` replaces the bytes of a member, or leaves it out."""
    at = times(len(counts)) if at is None else at
    content = {
        "data": npy(counts),
        "dates": pickled(at, protocol=protocol),
        "miss_dates": pickled(list(missing), protocol=protocol),
        **members,
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, raw in content.items():
            if raw is not None:
                archive.writestr(f"{name}.npy", raw)
    return path


def write_coordinates(path, *, shift=0.0):
    """Write the grid that lies beside the frames."""
    lats = np.repeat(51.891 - 0.01 * np.arange(SHAPE[0])[:, None], SHAPE[1], axis=1)
    lons = np.repeat(-5.837 + 0.01 * np.arange(SHAPE[1])[None, :] + shift, SHAPE[0], axis=0)
    np.savez_compressed(path, lats=lats, lons=lons)
    return path
