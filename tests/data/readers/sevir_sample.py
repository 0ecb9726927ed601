"""SEVIR files of vertically integrated liquid, and the catalog that goes with them."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from pyproj import CRS, Transformer

PROJ = "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere "
PIXELS, FRAMES = 384, 49
OFFSETS = tuple(range(-120, 125, 5))
LEFT, BOTTOM = 100_000.0, -250_000.0


def write_sevir(path, events, *, name="vil", chunks=(1, PIXELS, PIXELS, 7)):
    """Write events of counts; one is an id and what its frames hold, which is broadcast."""
    with h5py.File(path, "w") as file:
        file["id"] = np.array([np.bytes_(event) for event, _ in events])
        shape = (len(events), PIXELS, PIXELS, FRAMES)
        images = file.create_dataset(name, shape, "u1", chunks=chunks, compression="gzip")
        for index, (_, counts) in enumerate(events):
            images[index] = np.broadcast_to(np.asarray(counts, "u1"), shape[1:])
    return Path(path)


def row(event, index, file, **changes):
    """Give a row of the catalog; `corner` moves the grid of the event."""
    x, y = changes.pop("corner", (LEFT, BOTTOM))
    crs = CRS.from_user_input(PROJ)
    locate = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform
    lower, upper = locate(x, y), locate(x + PIXELS * 1000.0, y + PIXELS * 1000.0)
    found = {
        "id": event,
        "file_name": f"vil/2018/{file}",
        "file_index": index,
        "img_type": "vil",
        "time_utc": "2018-06-01 05:05:00",
        "minute_offsets": ":".join(map(str, OFFSETS)),
        "episode_id": 12.0,
        "llcrnrlon": lower[0],
        "llcrnrlat": lower[1],
        "urcrnrlon": upper[0],
        "urcrnrlat": upper[1],
        "proj": PROJ,
    }
    return {**found, **changes}


def write_catalog(folder, rows):
    """Write a catalog of these rows."""
    path = Path(folder) / "CATALOG.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path
