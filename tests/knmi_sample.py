"""Files in the format of KNMI's rain composites, with chosen content."""

import datetime
from pathlib import Path

import h5py
import numpy as np

MISSING = 65535
OUT_OF_IMAGE = 65534
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
PROJECTION = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"


def write_knmi(
    path,
    rain_mm,
    end_time,
    *,
    minutes=5,
    quantity="ACCUMULATED_PRECIPITATION_[MM]",
    formula="GEO=0.01*PV+0.0",
    product="RAD_TEST_5min",
    projection=PROJECTION,
    row_offset=3650.0,
):
    """Write rain in mm per five minutes; NaN is missing, infinity lies out of the image."""
    rain_mm = np.asarray(rain_mm, float)
    counts = np.where(np.isfinite(rain_mm), rain_mm * 100, 0).round().astype("<u2")
    counts[np.isnan(rain_mm)] = MISSING
    counts[np.isinf(rain_mm)] = OUT_OF_IMAGE
    end = datetime.datetime.fromisoformat(str(end_time))
    with h5py.File(path, "w") as file:
        image = file.create_group("image1")
        image.attrs["image_geo_parameter"] = np.bytes_(quantity)
        image.attrs["image_product_name"] = np.bytes_(product)
        image.create_dataset("image_data", data=counts, chunks=counts.shape, compression="gzip")
        calibration = image.create_group("calibration")
        calibration.attrs["calibration_formulas"] = np.bytes_(formula)
        calibration.attrs["calibration_missing_data"] = np.array([MISSING], "i4")
        calibration.attrs["calibration_out_of_image"] = np.array([OUT_OF_IMAGE], "i4")
        overview = file.create_group("overview")
        start = end - datetime.timedelta(minutes=minutes)
        overview.attrs["product_datetime_start"] = np.array([knmi_time(start)], "S25")
        overview.attrs["product_datetime_end"] = np.array([knmi_time(end)], "S25")
        _write_grid(file, counts.shape, projection, row_offset)
    return Path(path)


def knmi_time(time):
    """Give a time as KNMI writes it."""
    return f"{time:%d}-{MONTHS[time.month - 1]}-{time:%Y;%H:%M:%S}.000"


def rain(seed, shape=(12, 10)):
    """Give rain in mm per five minutes with dry and missing pixels, whole hundredths."""
    generator = np.random.default_rng(seed)
    rain_mm = generator.integers(0, 200, shape) / 100
    rain_mm[generator.random(shape) < 0.3] = 0.0
    rain_mm[generator.random(shape) < 0.2] = np.nan
    return rain_mm


def write_series(folder, count, *, seed=0, shape=(12, 10), **settings):
    """Write frames five minutes apart, from 2010-08-26T00:00; give their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    first = datetime.datetime(2010, 8, 26)
    times = [first + datetime.timedelta(minutes=5 * index) for index in range(count)]
    return [
        write_knmi(folder / f"{time:%Y%m%d%H%M}.h5", rain(seed + i, shape), time, **settings)
        for i, time in enumerate(times)
    ]


def _write_grid(file, shape, projection, row_offset):
    geographic = file.create_group("geographic")
    numbers = {
        "geo_row_offset": row_offset,
        "geo_column_offset": 0.0,
        "geo_pixel_size_x": 1.0,
        "geo_pixel_size_y": -1.0,
    }
    for name, number in numbers.items():
        geographic.attrs[name] = np.array([number], "f4")
    geographic.attrs["geo_number_rows"] = np.array([shape[0]], "i4")
    geographic.attrs["geo_number_columns"] = np.array([shape[1]], "i4")
    geographic.attrs["geo_dim_pixel"] = np.bytes_("KM,KM")
    geographic.attrs["geo_pixel_def"] = np.bytes_("LU")
    mapping = geographic.create_group("map_projection")
    mapping.attrs["projection_proj4_params"] = np.bytes_(projection)
