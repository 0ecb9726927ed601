"""Issued nowcasts for other programs: values at places as CSV or netCDF, and GeoTIFF."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast import __version__
from nowcast.conventions import (
    CF_CONVENTIONS,
    DISTRIBUTIONS,
    EXCEEDANCE,
    QUANTILES,
    grid_mapping_name,
    known_variable,
    variable_of,
)
from nowcast.durable import replacing
from nowcast.issuing import LEAD_TIME_ENCODING, TIME_ATTRIBUTES, TIME_ENCODING, open_nowcast
from nowcast.places import Grid, Places
from nowcast.verification.views import AtPlaces

AMOUNT = "rain_amount"  # name of what is summed over lead times
OBSERVED = "observed"
MINUTE = pd.Timedelta(minutes=1)
SHIFTED = 0.01  # of a pixel: the most by which a GeoTIFF may lie elsewhere than its nowcast
SUFFIXES = (".csv", ".nc")


def files_of(paths: Sequence[str | Path]) -> list[Path]:
    """Give the nowcast files that paths name: themselves, and those in a folder.

    Raises
    ------
    FileNotFoundError
        Naming a path that is not there, or a folder without any.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.nc")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            what = "holds no nowcast (*.nc)" if path.is_dir() else "is not there"
            raise FileNotFoundError(f"{path} {what}; give files that `nowcast issue` wrote")
        files += found
    return files


def extract(
    files: Sequence[Path | str],
    places: Places,
    *,
    accumulated: bool = False,
    thresholds: tuple[float, ...] = (),
    observed: xr.Dataset | None = None,
) -> xr.Dataset:
    """Give what nowcasts say of points or areas; one file is in memory at a time.

    Parameters
    ----------
    files
        By `nowcast.issuing.write_nowcast`: of one nowcaster, each base time once.
    places
        On the grid of the nowcasts.
    accumulated
        Whether to give amounts since the base time instead of rates; see
        `nowcast.verification.views.accumulated`.
    thresholds
        Of which to give the probability that they are reached, in the units of what is given. At
        points the nowcast's own probabilities count, if it has any; else, and always for areas and
        amounts, the part of its members that reach the threshold. Without any, the nowcast's own
        at points.
    observed
        To give beside the nowcast what was observed at its valid times.

    Returns
    -------
    Dataset
        ``(base_time, [member,] lead_time, place)``: the variable, or ``rain_amount``; with
        ``probability_of_exceedance``, ``value_at_quantile`` and ``observed`` where there are any.

    Raises
    ------
    ValueError
        If the files do not fit together or hold no probabilities that are asked for.
    """
    if not files:
        raise ValueError("no nowcast is given; give one file or more")
    view = AtPlaces(places, accumulated)
    parts: list[xr.Dataset] = []
    for file in files:
        part = _extracted(open_nowcast(file), view, thresholds, observed)
        if parts:
            _check_alike(Path(file), part, parts[0])
        parts.append(part)
    joined: xr.Dataset = xr.concat(
        parts,
        dim="base_time",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        combine_attrs="drop_conflicts",  # such as the input frames of one of them
    )
    times = joined["base_time"].to_index()
    if not times.is_unique:
        twice = times[times.duplicated()][0]
        raise ValueError(
            f"two of the files are nowcasts from {twice.isoformat()}; give each base time once"
        )
    return _described(joined.sortby("base_time"), view)


def remarks(values: xr.Dataset) -> list[str]:
    """Give what a reader of values should know: which places lie beyond grid or radar.

    Parameters
    ----------
    values
        As `extract` gives them.
    """
    field = values[values.attrs["variable"]]
    missing = field.isnull().all([dim for dim in field.dims if dim != "place"]).values
    covered = values.get("covered", xr.ones_like(field["lon"])).values
    found = []
    for place, part, nothing in zip(values["place"].values, covered, missing, strict=True):
        reasons = [f"{part:.0%} of it lies in the grid"] if part < 1 - 1e-6 else []
        if nothing:
            reasons.append("every value is missing: not observed, or not reached")
        found += [f"{place}: {'; '.join(reasons)}"] if reasons else []
    return found


def write_values(values: xr.Dataset, path: Path | str) -> Path:
    """Write what `extract` gives as CSV or CF netCDF, as the path ends; whole or not at all.

    The CSV file has a row for each base time, place and lead time. Of an ensemble the value is the
    mean of the members that are not missing, and ``members`` says how many those are. An empty
    cell is missing.

    Raises
    ------
    ValueError
        If the path ends in neither ``.csv`` nor ``.nc``.
    """
    path = Path(path)
    check_suffix(path)
    with replacing(path) as temporary:
        if path.suffix == ".csv":
            as_table(values).to_csv(temporary, index=False, float_format="%.7g")
        else:
            _as_cf(values).to_netcdf(temporary, engine="netcdf4", unlimited_dims=["base_time"])
    return path


def check_suffix(path: Path) -> None:
    """Refuse a name of which the format is not known.

    Raises
    ------
    ValueError
        Telling which are.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in {' or '.join(SUFFIXES)}, which says what is written")


def as_table(values: xr.Dataset) -> pd.DataFrame:
    """Give what `extract` gives as a table, as `write_values` writes it."""
    name = str(values.attrs["variable"])
    field = values[name]
    columns: dict[str, xr.DataArray] = {"value": field}
    if "member" in field.dims:
        columns = {"value": field.mean("member"), "members": field.notnull().sum("member")}
    if OBSERVED in values:
        columns[OBSERVED] = values[OBSERVED]
    for distribution, axis in DISTRIBUTIONS.items():
        for level in values[axis].values if distribution in values else ():
            told = values[distribution].sel({axis: level}, drop=True)
            columns[f"{_COLUMNS[distribution]}{level:g}"] = told
    dims = ("base_time", "place", "lead_time")
    plain = xr.Dataset(columns).reset_coords(drop=True)
    table = plain.to_dataframe(dim_order=dims).reset_index()
    valid = table["base_time"] + table["lead_time"]
    heading = {
        "base_time": table["base_time"].dt.strftime(_ISO),
        "lead_minutes": table["lead_time"] / MINUTE,
        "valid_time": valid.dt.strftime(_ISO),
        "place": table["place"],
        "variable": name,
        "value": table["value"],
        "units": field.attrs["units"],
    }
    others = [column for column in columns if column != "value"]
    return pd.DataFrame(heading).join(table[others])


_ISO = "%Y-%m-%dT%H:%M:%SZ"
_COLUMNS = {EXCEEDANCE: "probability_of_reaching_", QUANTILES: "quantile_"}


def export_geotiff(files: Sequence[Path | str], folder: Path | str) -> list[Path]:
    """Write nowcasts as GeoTIFF, one file for each base time and one band for each lead time.

    The file bears the name of the nowcast's; the base time is added where that holds several.

    Parameters
    ----------
    files
        By `nowcast.issuing.write_nowcast`, each with a name of its own.
    folder
        Made if missing.

    Raises
    ------
    ValueError
        If two files have the same name, or GeoTIFF has no words for a projection.
    """
    stems = [Path(file).stem for file in files]
    twice = [stem for stem in stems if stems.count(stem) > 1]
    if twice:
        raise ValueError(f"two files are called {twice[0]}.nc; export them to folders of their own")
    written: list[Path] = []
    for file, stem in zip(files, stems, strict=True):
        nowcast = open_nowcast(file)
        for number, base_time in enumerate(nowcast["base_time"].to_index()):
            several = f"-{base_time:%Y%m%dT%H%MZ}" if nowcast.sizes["base_time"] > 1 else ""
            path = Path(folder) / f"{stem}{several}.tif"
            written.append(write_geotiff(nowcast.isel(base_time=number), path))
    return written


def write_geotiff(nowcast: xr.Dataset, path: Path | str) -> Path:
    """Write a nowcast from one base time as GeoTIFF, whole or not at all.

    North is up, a band is a lead time, missing is NaN. Of an ensemble the mean of the members that
    are not missing is written, and the tag ``members`` says so. Probabilities are left out.

    Parameters
    ----------
    nowcast
        Without the dim ``base_time``.
    path
        Destination, replaced if there.

    Raises
    ------
    ValueError
        If GeoTIFF has no words for the projection.
    """
    import rasterio

    name, grid = variable_of(nowcast), Grid(nowcast)
    field = nowcast[name]
    tags = {key: str(value) for key, value in nowcast.attrs.items()}
    tags |= {"variable": name, "base_time": _iso(nowcast["base_time"])}
    if "member" in field.dims:
        tags["members"] = f"mean of {field.sizes['member']}"
        field = field.mean("member")
    field = field.sortby("y", ascending=False).sortby("x").transpose("lead_time", "y", "x")
    west, north = grid.x.min() - grid.width / 2, grid.y.max() + grid.height / 2
    if grid.geographic:  # programs expect -180 to 180
        west -= 360.0 * round((grid.x.min() + grid.x.max()) / 720.0)
    profile = {
        "driver": "GTiff",
        "count": field.sizes["lead_time"],
        "height": field.sizes["y"],
        "width": field.sizes["x"],
        "dtype": "float32",
        "nodata": np.nan,
        "crs": rasterio.CRS.from_wkt(grid.crs.to_wkt()),
        "transform": rasterio.Affine(grid.width, 0.0, west, 0.0, -grid.height, north),
        "compress": "deflate",
        "interleave": "band",
    }
    # Without side-cars: they would neither be renamed with the file nor removed.
    with replacing(path) as temporary, rasterio.Env(GDAL_PAM_ENABLED="NO"):
        with rasterio.open(temporary, "w", **profile) as file:
            file.write(field.values.astype(np.float32))
            file.update_tags(**tags)
            file.units = [field.attrs["units"]] * file.count
            for band, lead_time in enumerate(field["lead_time"].to_index(), 1):
                minutes = f"{lead_time / MINUTE:g}"
                valid = _iso(nowcast["base_time"] + lead_time)
                file.set_band_description(band, f"+{minutes} min {valid}")
                file.update_tags(band, lead_minutes=minutes, valid_time=valid)
        _check_place(temporary, grid)
    return Path(path)


def _check_place(path: Path, grid: Grid) -> None:
    """Refuse a file whose projection, as read back, shows its corners elsewhere."""
    import rasterio
    from pyproj import CRS, Transformer

    with rasterio.open(path) as file:
        crs, (west, south, east, north) = file.crs, file.bounds
    x, y = np.array([west, west, east, east]), np.array([south, north, south, north])
    found = (np.inf, np.inf)
    if crs:
        read = Transformer.from_crs(CRS.from_wkt(crs.to_wkt()), grid.crs, always_xy=True)
        found = read.transform(x, y)
    away = max(abs(found[0] - x).max() / grid.width, abs(found[1] - y).max() / grid.height)
    if not away <= SHIFTED:
        raise ValueError(
            f"GeoTIFF has no words for the projection {grid.crs.name!r}: its corners would lie "
            f"{away:g} pixels away; use the netCDF file"
        )


def _extracted(
    nowcast: xr.Dataset,
    view: AtPlaces,
    thresholds: tuple[float, ...],
    observed: xr.Dataset | None,
) -> xr.Dataset:
    """Give one nowcast at places."""
    name = variable_of(nowcast)
    units = view.units(known_variable(nowcast))
    reduced = view.reduced(nowcast).drop_vars(grid_mapping_name(nowcast))
    if thresholds:
        reduced = _with_chances(reduced, name, units, sorted(set(thresholds)))
    if observed is not None:
        reduced[OBSERVED] = view.places.of(view.before.observed(_at(observed, nowcast, view)))
        reduced[OBSERVED].attrs["long_name"] = f"observed {reduced[name].attrs['long_name']}"
    given = AMOUNT if view.accumulated else name
    return reduced.rename({name: given}).assign_attrs(nowcast.attrs, variable=given)


def _at(observed: xr.Dataset, nowcast: xr.Dataset, view: AtPlaces) -> xr.DataArray:
    """Give the frames observed at the valid times of a nowcast; NaN where there is none."""
    name = variable_of(nowcast)
    if name not in observed or observed[name].attrs.get("units") != nowcast[name].attrs["units"]:
        raise ValueError(
            f"the nowcast is of {name} in {nowcast[name].attrs['units']}; the observations hold "
            f"{', '.join(map(str, observed))}; give those it was made from"
        )
    view.places.check_grid(observed)
    valid = nowcast["valid_time"]
    there = np.intersect1d(observed["time"].values, valid)
    frames = observed[name].sel(time=there).load().reindex(time=np.unique(valid))
    return frames.sel(time=valid).drop_vars(["time", grid_mapping_name(observed)])


def _with_chances(
    reduced: xr.Dataset, name: str, units: str, thresholds: list[float]
) -> xr.Dataset:
    """Give the probabilities of thresholds: the nowcast's own, or those of its members."""
    if EXCEEDANCE in reduced:
        known = reduced["threshold"].values
        absent = [one for one in thresholds if not np.isclose(known, one).any()]
        if absent:
            raise ValueError(
                f"the nowcast has no probability of reaching {absent[0]:g} {units}; it has those "
                f"of {', '.join(f'{one:g}' for one in known)}"
            )
        return reduced.sel(threshold=thresholds, method="nearest")
    field = reduced[name]
    if "member" not in field.dims:
        raise ValueError(
            "the probability of reaching a threshold needs a nowcast with members or, for rates "
            "at points, with probabilities; this one has neither for what was asked; leave the "
            "thresholds out"
        )
    at = xr.DataArray(np.asarray(thresholds, field.dtype), dims="threshold")
    reached = (field >= at).where(field.notnull()).mean("member").astype(np.float32)
    about = {"long_name": "threshold", "units": units}
    reached = reached.assign_coords(threshold=("threshold", thresholds, about))
    reached.attrs = {"long_name": "part of the members that reach the threshold", "units": "1"}
    dims = ("base_time", "threshold", "lead_time", "place")
    return reduced.assign({EXCEEDANCE: reached.transpose(*dims)})


def _check_alike(file: Path, part: xr.Dataset, first: xr.Dataset) -> None:
    """Refuse to put in one table what does not belong together."""
    for what, told in _KINDS.items():
        mine, its = told(part), told(first)
        if mine != its:
            raise ValueError(
                f"{file}: its {what} differ from those of the first file: {mine}, {its}; extract "
                "them apart"
            )


def _leads(dataset: xr.Dataset) -> list[float]:
    return [float(lead) for lead in dataset["lead_time"].to_index() / MINUTE]


def _levels(dataset: xr.Dataset) -> dict[str, list[float]]:
    axes = ("member", *DISTRIBUTIONS.values())
    return {axis: dataset[axis].values.tolist() for axis in axes if axis in dataset.dims}


def _made_by(dataset: xr.Dataset) -> list[str]:
    names = ("nowcaster", "nowcaster_version", "nowcaster_sha256")
    return [str(dataset.attrs.get(name, "")) for name in names]


_KINDS: dict[str, Any] = {
    "variables": lambda dataset: sorted(map(str, dataset)),
    "lead times (minutes)": _leads,
    "members or levels": _levels,
    "nowcaster, version and hash": _made_by,
}


def _described(values: xr.Dataset, view: AtPlaces) -> xr.Dataset:
    """Add where the places are."""
    places = view.places
    about = {
        "lon": (places.lon, {"standard_name": "longitude", "units": "degrees_east"}),
        "lat": (places.lat, {"standard_name": "latitude", "units": "degrees_north"}),
    }
    if places.kind == "point":
        long_name = "distance of the point from the centre of its pixel"
        about["distance"] = (places.distance, {"long_name": long_name, "units": "m"})
    else:
        long_name = "part of the area that lies in the grid"
        about["covered"] = (places.covered, {"long_name": long_name, "units": "1"})
        for name in {values.attrs["variable"], OBSERVED} & set(values):
            values[name].attrs["cell_methods"] = "area: mean"
    name = values.attrs["variable"]
    title = f"Nowcast of {values[name].attrs['long_name']} at {len(places.names)} {places.kind}s"
    return values.assign_attrs(title=title).assign_coords(
        {name: ("place", array, attributes) for name, (array, attributes) in about.items()}
    )


def _as_cf(values: xr.Dataset) -> xr.Dataset:
    names = {"long_name": "name of the place", "cf_role": "timeseries_id"}
    content = values.rename(place="place_name").swap_dims(place_name="place")
    content = content.reset_coords("place_name").set_coords("place_name").drop_encoding()
    content["place_name"].attrs = names
    for variable in content.variables.values():
        variable.encoding["_FillValue"] = None  # CF: coordinates have no missing values
    for array in content.data_vars.values():
        array.encoding = {"dtype": "float32", "_FillValue": np.float32(np.nan), "zlib": True}
    for time in ("base_time", "valid_time"):
        content[time].encoding.update(TIME_ENCODING)
        content[time].attrs.update(TIME_ATTRIBUTES)
    content["lead_time"].encoding.update(LEAD_TIME_ENCODING)
    content.attrs |= {
        "history": f"{datetime.now(UTC):{_ISO}} extracted by nowcast {__version__}",
        "Conventions": CF_CONVENTIONS,
    }
    return content


def _iso(time: Any) -> str:
    return str(pd.Timestamp(time.values).strftime(_ISO))
