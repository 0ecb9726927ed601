import json
import subprocess
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast import issuing
from nowcast.conventions import (
    CF_CONVENTIONS,
    RAIN_RATE,
    build_nowcast,
    grid_id,
    with_exceedance,
    with_quantiles,
)
from nowcast.data.quality import quality_variable
from nowcast.nowcasters.members import Draw, WithMembers

LAEA = {
    "grid_mapping_name": "lambert_azimuthal_equal_area",
    "latitude_of_projection_origin": 52.0,
    "longitude_of_projection_origin": 10.0,
    "false_easting": 0.0,
    "false_northing": 0.0,
    "semi_major_axis": 6378137.0,
    "inverse_flattening": 298.257223563,
}
LATITUDE_LONGITUDE = {
    "grid_mapping_name": "latitude_longitude",
    "semi_major_axis": 6378137.0,
    "inverse_flattening": 298.257223563,
}
TIMES = pd.date_range("2024-06-01T12:00", periods=8, freq="10min")
LEAD_TIMES = pd.to_timedelta([10, 20, 30], unit="min")
NEWEST_CF = "1.11"  # that the compliance checker knows; the first test fails when it learns another


class LastFrame:
    """A nowcaster that repeats the last of two frames; several members are shifted sideways."""

    input_frames = 2
    step = None

    def __init__(self, members=0):
        self.members = members

    def nowcast(self, observed, *, base_times, lead_times):
        last = observed["rain_rate"].sel(time=base_times).values[:, None]
        values = np.repeat(last, len(lead_times), axis=1)
        if self.members:
            values = np.stack([np.roll(values, m, axis=-1) for m in range(self.members)], axis=1)
        return build_nowcast(
            values,
            observed=observed,
            variable=RAIN_RATE,
            base_times=base_times,
            lead_times=lead_times,
        )


class Uncertain(LastFrame):
    """The last frame, with the distribution of what is half, once or one and a half times it."""

    def nowcast(self, observed, *, base_times, lead_times):
        field = super().nowcast(observed, base_times=base_times, lead_times=lead_times)
        values = field["rain_rate"].values[:, None]
        factors, thresholds = np.array([0.5, 1.0, 1.5]), np.array([0.5, 2.0])
        amounts = values * factors[:, None, None, None]
        reached = amounts[:, None] >= thresholds[:, None, None, None, None]
        chances = np.where(np.isnan(values), np.nan, reached.mean(axis=2))
        probable = with_exceedance(field, chances, thresholds=tuple(thresholds))
        return with_quantiles(probable, amounts, quantiles=(0.25, 0.5, 0.75))


def observations(grid):
    values = np.random.default_rng(0).gamma(0.5, 2.0, size=(8, 12, 10)).astype(np.float32)
    values[:, :4] = 0.0
    values[:, 9:, 7:] = np.nan
    axes = {
        "laea": ((-2000.0, 2000.0, "m", "m"), LAEA),
        "latlon": ((-0.02, 0.03, "degrees_north", "degrees_east"), LATITUDE_LONGITUDE),
    }
    (dy, dx, y_units, x_units), mapping = axes[grid]
    return xr.Dataset(
        {"rain_rate": (("time", "y", "x"), values, RAIN_RATE.attributes)},
        coords={
            "time": TIMES,
            "y": ("y", 52.0 + np.arange(12) * dy, {"units": y_units}),
            "x": ("x", 5.0 + np.arange(10) * dx, {"units": x_units}),
            "crs": ((), 0, mapping),
        },
        attrs={"institution": "an institute", "license": "CC BY 4.0"},
    )


@pytest.fixture(params=["laea", "latlon"])
def observed(request):
    return observations(request.param)


@pytest.fixture(params=["one", "ensemble", "uncertain"])
def nowcaster(request):
    if request.param == "uncertain":
        return Uncertain()
    return LastFrame(members=3 if request.param == "ensemble" else 0)


@pytest.fixture
def nowcast(observed, nowcaster):
    return nowcaster.nowcast(observed, base_times=TIMES[[4]], lead_times=LEAD_TIMES)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def remarks(tmp_path_factory):
    """Give what the CF checker has to say about each of some files, with its priority."""
    folder = tmp_path_factory.mktemp("cf")
    cases = {
        f"{grid}-{members}": (LastFrame(members), observations(grid), TIMES[[4]])
        for grid in ("laea", "latlon")
        for members in (0, 3)
    }
    cases["several"] = (LastFrame(), observations("laea"), TIMES[3:6])
    cases["uncertain"] = (Uncertain(), observations("laea"), TIMES[3:6])
    cases["drawn"] = (WithMembers(Uncertain(), Draw(members=2)), observations("laea"), TIMES[3:6])
    paths = [
        issuing.write_nowcast(
            nowcaster.nowcast(observed, base_times=base_times, lead_times=LEAD_TIMES),
            folder / f"{name}.nc",
        )
        for name, (nowcaster, observed, base_times) in cases.items()
    ]
    script, report = Path(sys.executable).with_name("compliance-checker"), folder / "report.json"
    options = ["-O", "cf:enable_appendix_a_checks", "-f", "json_new", "-o", report]
    subprocess.run(
        [script, "-t", f"cf:{NEWEST_CF}", "-c", "strict", *options, *paths],
        check=False,  # its status tells of remarks, which the tests read from the report
        capture_output=True,
        timeout=120,
    )
    results = {Path(path).stem: one for path, one in json.loads(report.read_text()).items()}
    return {name: results[name][f"cf:{NEWEST_CF}"] for name in cases}


def test_the_checked_convention_is_the_newest_and_the_one_claimed():
    suites = {suite.name for suite in entry_points(group="compliance_checker.suites")}
    known = [suite.removeprefix("cf-") for suite in suites if suite.startswith("cf-")]
    newest = max(known, key=lambda version: tuple(map(int, version.split("."))))
    assert newest == NEWEST_CF
    assert f"CF-{NEWEST_CF}" == CF_CONVENTIONS


@pytest.mark.parametrize(
    "case", ["laea-0", "laea-3", "latlon-0", "latlon-3", "several", "uncertain", "drawn"]
)
def test_the_file_keeps_cf_without_a_single_remark(case, remarks):
    result = remarks[case]
    assert [
        (priority, check["name"], check["msgs"])
        for priority in ("high_priorities", "medium_priorities", "low_priorities")
        for check in result[priority]
        if check["msgs"]
    ] == []
    assert result["scored_points"] == result["possible_points"] > 50


def test_several_base_times_go_into_one_file(tmp_path):
    several = LastFrame().nowcast(
        observations("laea"), base_times=TIMES[3:6], lead_times=LEAD_TIMES
    )
    path = issuing.write_nowcast(several, tmp_path / "nowcast.nc")
    xr.testing.assert_equal(issuing.open_nowcast(path), several)


def test_what_is_opened_equals_what_was_written(nowcast, tmp_path):
    path = issuing.write_nowcast(nowcast, tmp_path / "nowcast.nc")
    opened = issuing.open_nowcast(path)
    xr.testing.assert_equal(opened, nowcast)
    assert set(opened.coords) == set(nowcast.coords)
    assert opened["rain_rate"].dtype == np.float32
    assert opened["rain_rate"].attrs == nowcast["rain_rate"].attrs
    assert opened["crs"].attrs == nowcast["crs"].attrs
    assert grid_id(opened) == grid_id(nowcast)


def test_probabilities_and_quantiles_are_in_the_file_with_their_levels(tmp_path):
    paths = issuing.issue(
        Uncertain(),
        observations("laea"),
        base_times=TIMES[[4]],
        lead_times=LEAD_TIMES[:2],
        out=tmp_path,
    )
    assert [path.suffix for path in paths] == [".nc", ".png", ".gif"]
    with netCDF4.Dataset(paths[0]) as file:
        chances, amounts = file["probability_of_exceedance"], file["value_at_quantile"]
        assert chances.dimensions == ("base_time", "threshold", "lead_time", "y", "x")
        assert (chances.units, chances.grid_mapping, chances.dtype) == ("1", "crs", np.float32)
        assert (file["threshold"].units, file["threshold"].standard_name) == (
            "mm h-1",
            "rainfall_rate",
        )
        assert file["threshold"][:].tolist() == [0.5, 2.0]
        assert amounts.dimensions == ("base_time", "quantile", "lead_time", "y", "x")
        assert (amounts.units, file["quantile"].units) == ("mm h-1", "1")
        missing = np.isnan(observations("laea")["rain_rate"].values[4])
        assert (np.isnan(np.ma.filled(chances[0, 0, 0], np.nan)) == missing).all()


def test_missing_stays_missing_and_dry_stays_dry(nowcast, tmp_path):
    path = issuing.write_nowcast(nowcast, tmp_path / "nowcast.nc")
    opened, before = issuing.open_nowcast(path)["rain_rate"].values, nowcast["rain_rate"].values
    assert np.isnan(before).any()
    assert (before == 0.0).any()
    assert (np.isnan(opened) == np.isnan(before)).all()
    assert ((opened == 0.0) == (before == 0.0)).all()
    with netCDF4.Dataset(path) as file:
        stored = file["rain_rate"]
        assert stored.dtype == np.float32
        assert np.isnan(stored._FillValue)
        assert stored.filters()["zlib"] is True


@pytest.mark.parametrize("lead_times", [LEAD_TIMES, pd.to_timedelta([30, 90, 3600], unit="s")])
def test_plain_xarray_reopens_lead_time_as_a_timedelta(lead_times, tmp_path):
    nowcast = LastFrame().nowcast(
        observations("laea"), base_times=TIMES[[4]], lead_times=lead_times
    )
    path = issuing.write_nowcast(nowcast, tmp_path / "nowcast.nc")
    for engine in ("netcdf4", "h5netcdf"):
        with xr.open_dataset(path, engine=engine) as opened:
            assert opened["lead_time"].dtype.kind == "m"
            assert list(opened["lead_time"].to_index()) == list(lead_times)
            assert list(opened["base_time"].to_index()) == [TIMES[4]]
            assert "valid_time" in opened.coords
            assert (opened["valid_time"] == opened["base_time"] + opened["lead_time"]).all()


def test_the_file_says_what_cf_asks_of_a_forecast(nowcast, tmp_path):
    nowcast = nowcast.assign_attrs(nowcaster="persistence", nowcaster_version="2")
    path = issuing.write_nowcast(nowcast, tmp_path / "nowcast.nc")
    with netCDF4.Dataset(path) as file:
        names = {
            name: file[name].standard_name for name in ("base_time", "lead_time", "valid_time")
        }
        assert names == {
            "base_time": "forecast_reference_time",
            "lead_time": "forecast_period",
            "valid_time": "time",
        }
        assert file["rain_rate"].coordinates == "valid_time"
        assert file["rain_rate"].grid_mapping == "crs"
        assert file["rain_rate"].standard_name == "rainfall_rate"
        for name in ("base_time", "lead_time", "valid_time", "y", "x"):
            assert "_FillValue" not in file[name].ncattrs()
        assert file.Conventions == CF_CONVENTIONS
        assert file.title == "Nowcast of rain rate by persistence, base time 2024-06-01T12:40Z"
        assert file.source.startswith(
            "forecast from gridded observations by persistence (version 2)"
        )
        for name in ("institution", "history", "references", "comment", "nowcast_version"):
            assert file.getncattr(name)


def test_writing_leaves_the_nowcast_as_it_is(nowcast, tmp_path):
    before = nowcast.copy(deep=True)
    issuing.write_nowcast(nowcast, tmp_path / "nowcast.nc")
    xr.testing.assert_identical(nowcast, before)
    assert nowcast["rain_rate"].encoding == {}


def test_what_was_opened_can_be_written_again(nowcast, tmp_path):
    first = issuing.open_nowcast(issuing.write_nowcast(nowcast, tmp_path / "first.nc"))
    second = issuing.open_nowcast(issuing.write_nowcast(first, tmp_path / "second.nc"))
    xr.testing.assert_identical(second, first)


def test_a_lazy_nowcast_is_written_the_same(nowcast, tmp_path):
    path = issuing.write_nowcast(nowcast.chunk(lead_time=1), tmp_path / "nowcast.nc")
    xr.testing.assert_equal(issuing.open_nowcast(path), nowcast)


def test_what_is_no_nowcast_is_neither_written_nor_opened(nowcast, tmp_path):
    path = tmp_path / "nowcast.nc"
    with pytest.raises(ValueError, match="lead_time must be a timedelta"):
        issuing.write_nowcast(nowcast.assign_coords(lead_time=[10, 20, 30]), path)
    assert list(tmp_path.iterdir()) == []
    nowcast.drop_vars("valid_time").to_netcdf(path)
    with pytest.raises(ValueError, match="valid_time"):
        issuing.open_nowcast(path)


def fail_in_the_middle(monkeypatch):
    """Make the next file break off after half of its bytes are written."""
    whole = xr.Dataset.to_netcdf

    def half(self, path, **settings):
        whole(self, path, **settings)
        path.write_bytes(path.read_bytes()[:2000])
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", half)


def test_a_write_that_fails_in_the_middle_leaves_nothing(nowcast, tmp_path, monkeypatch):
    fail_in_the_middle(monkeypatch)
    with pytest.raises(OSError, match="disk full"):
        issuing.write_nowcast(nowcast, tmp_path / "nowcast.nc")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_in_the_middle_leaves_the_old_file(nowcast, tmp_path, monkeypatch):
    path = issuing.write_nowcast(nowcast, tmp_path / "nowcast.nc")
    before = path.read_bytes()
    fail_in_the_middle(monkeypatch)
    with pytest.raises(OSError, match="disk full"):
        issuing.write_nowcast(nowcast.isel(lead_time=[0]), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_no_file_of_that_name(tmp_path):
    code = (
        "import os, sys, xarray as xr\n"
        "from nowcast import issuing\n"
        "nowcast = issuing.open_nowcast(sys.argv[1])\n"
        "whole = xr.Dataset.to_netcdf\n"
        "def half(self, path, **settings):\n"
        "    whole(self, path, **settings)\n"
        "    os.truncate(path, 2000)\n"
        "    os.kill(os.getpid(), 9)\n"
        "xr.Dataset.to_netcdf = half\n"
        "issuing.write_nowcast(nowcast, sys.argv[2])\n"
    )
    nowcast = LastFrame().nowcast(
        observations("laea"), base_times=TIMES[[4]], lead_times=LEAD_TIMES
    )
    whole = issuing.write_nowcast(nowcast, tmp_path / "whole.nc")
    killed = tmp_path / "out" / "killed.nc"
    run = subprocess.run([sys.executable, "-c", code, whole, killed], check=False, timeout=120)
    assert run.returncode == -9
    assert not killed.exists()
    assert [path.name[:5] for path in killed.parent.iterdir()] == [".tmp-"]


def test_issue_writes_three_files_per_base_time(tmp_path):
    observed = observations("laea")
    paths = issuing.issue(
        LastFrame(),
        observed,
        base_times=TIMES[[3, 4]],
        lead_times=LEAD_TIMES[:1],
        out=tmp_path / "issued",
        name="rain.v2",
    )
    assert [path.name for path in paths] == [
        f"rain.v2-20240601T{time}Z.{kind}"
        for time in ("1230", "1240")
        for kind in ("nc", "png", "gif")
    ]
    assert sorted((tmp_path / "issued").iterdir()) == sorted(paths)
    expected = LastFrame().nowcast(observed, base_times=TIMES[[4]], lead_times=LEAD_TIMES[:1])
    xr.testing.assert_equal(issuing.open_nowcast(paths[3]), expected)


def issued_attributes(observed, out, **settings):
    path, *_ = issuing.issue(
        LastFrame(), observed, base_times=TIMES[[4]], lead_times=LEAD_TIMES[:1], out=out, **settings
    )
    return issuing.open_nowcast(path).attrs


def test_the_file_says_what_it_was_made_from(tmp_path, monkeypatch):
    for plot in ("panel", "animation"):  # they take long, and others test them
        monkeypatch.setattr(issuing, plot, lambda *_, path: path)
    observed = observations("laea")
    told = {"nowcaster": "persistence", "nowcaster_sha256": "ab12", "institution": "us"}
    attributes = issued_attributes(observed, tmp_path, provenance=told)
    assert {**attributes, **told} == attributes
    assert attributes["input_frames"] == "2024-06-01T12:30:00Z 2024-06-01T12:40:00Z"
    assert attributes["input_institution"] == "an institute"
    assert attributes["input_license"] == "CC BY 4.0"

    # Only the frames that were used make the fingerprint.
    later = observed.copy(deep=True)
    later["rain_rate"][5:] = 1.0
    same = issued_attributes(later, tmp_path)["input_fingerprint"]
    assert same == attributes["input_fingerprint"]
    later["rain_rate"][3, 0, 0] = 1.0
    assert issued_attributes(later, tmp_path)["input_fingerprint"] != same


@pytest.mark.parametrize(
    ("flags", "told", "warned"),
    [
        ([0, 0], "no flag", ""),
        ([32, 0], "2024-06-01T12:30:00Z all_dry", ""),
        (
            [10, 0],
            "2024-06-01T12:30:00Z low_coverage frozen",
            "2024-06-01T12:30:00Z low_coverage frozen; data.leave_out",
        ),
        (
            [32, 68],
            "2024-06-01T12:30:00Z all_dry, 2024-06-01T12:40:00Z coverage_jump unit_unproven",
            "2024-06-01T12:40:00Z coverage_jump; data.leave_out",
        ),
    ],
)
def test_the_file_says_what_is_suspicious_of_the_frames_used(
    flags, told, warned, tmp_path, monkeypatch, caplog
):
    for plot in ("panel", "animation"):
        monkeypatch.setattr(issuing, plot, lambda *_, path: path)
    observed = observations("laea")
    assert "input_quality" not in issued_attributes(observed, tmp_path)
    every = np.full(observed.sizes["time"], 8)  # frames that were not used have no say
    every[3:5] = flags
    flagged = observed.assign_coords(quality_flag=quality_variable(observed["time"].values, every))
    with caplog.at_level("WARNING"):
        attributes = issued_attributes(flagged, tmp_path)
    assert attributes["input_quality"] == told
    assert (warned in caplog.text) if warned else not caplog.records


def test_a_base_time_that_is_not_in_the_data_is_named_with_the_nearest(tmp_path):
    wanted = pd.DatetimeIndex([TIMES[4], pd.Timestamp("2024-06-01T12:36")])
    with pytest.raises(ValueError, match=r"2024-06-01T12:36:00") as caught:
        issuing.issue(
            LastFrame(),
            observations("laea"),
            base_times=wanted,
            lead_times=LEAD_TIMES,
            out=tmp_path,
        )
    message = str(caught.value)
    assert "the nearest is 2024-06-01T12:40:00" in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []  # nor for the base time that is there


def test_a_plot_that_fails_costs_no_forecast_and_leaves_no_half_file(tmp_path, monkeypatch):
    def half(_, target, *_more, **_named):
        target.write_bytes(b"\x89PNG half")
        raise OSError("disk full")

    monkeypatch.setattr("PIL.Image.Image.save", half)
    with pytest.raises(OSError, match="disk full"):
        issued_attributes(observations("laea"), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".nc"]
    issuing.open_nowcast(next(tmp_path.iterdir()))
