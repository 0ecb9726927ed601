"""Files in the format of the Bureau of Meteorology's Rainfields 3, with chosen content."""

from pathlib import Path

import numpy as np

FILL = -32768
TIME = {"units": "seconds since 1970-01-01 00:00:00 UTC"}
GLOBALS = {
    "Conventions": "CF-1.6",
    "title": "Bias Corrected Radar Accumulation",
    "institution": "Commonwealth of Australia, Bureau of Meteorology",
    "licence": "http://www.bom.gov.au/other/copyright.shtml",
    "station_id": np.uint32(2),
    "station_name": "Melb",
}
PROJECTION = {
    "grid_mapping_name": "albers_conical_equal_area",
    "semi_major_axis": 6378137.0,
    "inverse_flattening": 298.257222101,
    "standard_parallel": [-18.0, -36.0],
    "longitude_of_central_meridian": 144.752,
    "latitude_of_projection_origin": -37.852,
    "false_easting": 0.0,
    "false_northing": 0.0,
}
AMOUNT = {
    "grid_mapping": "proj",
    "long_name": "Accumulated precipitation",
    "standard_name": "precipitation_amount",
    "units": "kg m-2",
    "scale_factor": 0.05,
    "add_offset": 0.0,
}


def write_bom(
    path,
    counts,
    *,
    start=1529142840,
    end=1529143200,
    amount=None,
    projection=None,
    axes=None,
    times=None,
    heading=None,
):
    """Write counts of 16 bits; attributes that are None are left out."""
    from netCDF4 import Dataset

    counts = np.asarray(counts, np.int16)
    with Dataset(path, "w") as file:
        _set(file, {**GLOBALS, **(heading or {})})
        for name, seconds in (("valid_time", end), ("start_time", start)):
            variable = file.createVariable(name, "i8")
            _set(variable, {**TIME, **(times or {})})
            variable[...] = seconds
        _set(file.createVariable("proj", "i1"), {**PROJECTION, **(projection or {})})
        for name, size, sign in (("y", counts.shape[0], -1), ("x", counts.shape[1], 1)):
            file.createDimension(name, size)
            centres = (np.arange(size) - size // 2) * 0.5 * sign
            variable = file.createVariable(name, "f4", (name,))
            attributes = {"units": "km", "standard_name": f"projection_{name}_coordinate"}
            attributes |= {"valid_min": centres.min(), "valid_max": centres.max()}
            _set(variable, {**attributes, **(axes or {})})
            variable[:] = centres
        # A chunk for each half of the rows, so that one of them can be left out.
        chunks = (-(-counts.shape[0] // 2), counts.shape[1])
        variable = file.createVariable(
            "precipitation", "i2", ("y", "x"), zlib=True, fill_value=FILL, chunksizes=chunks
        )
        _set(variable, {**AMOUNT, **(amount or {})})
        variable.set_auto_maskandscale(False)
        variable[:] = counts
    return Path(path)


def _set(target, attributes):
    target.setncatts({name: value for name, value in attributes.items() if value is not None})
