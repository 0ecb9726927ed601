"""Not only rain: a field in kelvin goes the whole road by a settings file alone."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast import experiments
from nowcast.cli import main
from nowcast.config import load
from nowcast.issuing import open_nowcast

TEMPERATURE = Path(__file__).parents[1] / "configs" / "temperature.toml"
DAYS, HEIGHT, WIDTH = 16, 8, 12
SMALL = f"""
experiment = "temperature"

[variable]
name = "air"
units = "K"
long_name = "air temperature"
standard_name = "air_temperature"
valid_min = 180.0
valid_max = 340.0
period_hours = 24

[transform]
name = "linear"
offset = 280.0
top = 285.0

[window]
input_frames = 6
lead_frames = 6
step_minutes = 180

[split]
train = "2024-03-01T00:00/2024-03-08T21:00"
validation = "2024-03-09T00:00/2024-03-12T21:00"
test = "2024-03-13T00:00/2024-03-{DAYS}T21:00"

[network]
settings = {{ filters = [8] }}

[training]
epochs = 12
loss = "mse"
learning_rate = 1e-2

[verification]
baselines = ["persistence"]
thresholds = []
every_minutes = 180

[promotion]
model_name = "temperature"
score = "mae"
first_lead_minutes = 360
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A settings file."""
    path = tmp_path_factory.mktemp("settings") / "air.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def air(tmp_path_factory):
    """A file of three-hourly temperature: a daily cycle, a moving wave and a blind corner."""
    hours = np.arange(0, 24 * DAYS, 3)[:, None, None]
    north, east = np.arange(HEIGHT)[:, None], np.arange(WIDTH)
    cycle = 5 * np.sin(2 * np.pi * (hours - 9) / 24)
    wave = 3 * np.sin(2 * np.pi * (east / WIDTH - hours / 60)) + 0.3 * north
    kelvin = (281 + cycle + wave).astype(np.float32)
    kelvin[:, :2, :2] = np.nan
    path = tmp_path_factory.mktemp("air") / "air.nc"
    xr.Dataset(
        {"air": (("time", "lat", "lon"), kelvin, {"units": "K", "long_name": "air temperature"})},
        coords={
            "time": pd.date_range("2024-03-01", periods=len(hours), freq="3h"),
            "lat": ("lat", 50.0 + np.arange(HEIGHT), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(WIDTH) + 0.0, {"units": "degrees_east"}),
        },
    ).to_netcdf(path)
    return path


def _run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return exit_.value.code, printed.out, printed.err


@pytest.mark.parametrize("network", ["convlstm", pytest.param("cnn_lstm", marks=pytest.mark.proof)])
def test_temperature_goes_the_whole_road(capsys, tmp_path, settings, air, network):
    shared = ["--observations", air, "--work", tmp_path / "work"]
    status, printed, complaint = _run(
        capsys, "train", settings, "--set", f"network.name={network}", *shared, "--json"
    )
    assert status == 0, complaint
    uri = json.loads(printed)["uri"]
    assert uri == "models:/temperature/1"

    scores_file = tmp_path / "scores.nc"
    status, printed, complaint = _run(
        capsys, "verify", "--nowcaster", uri, "--config", settings, "--split", "test",
        "--out", scores_file, *shared,
    )  # fmt: skip
    assert status == 0, complaint
    told = re.findall(r"^(.*) \(K\)$", printed, re.MULTILINE)
    assert told == ["MAE", "RMSE", "bias", "CRPS"]
    page = scores_file.with_suffix(".html").read_text()
    assert f"{uri} has the lowest RMSE over all lead times" in page
    assert "CSI" not in printed
    assert "extrapolation" not in printed
    with xr.open_dataset(scores_file) as scores:
        assert scores["nowcaster"].values.tolist() == ["persistence", "periodic", uri]
        mae = scores["mae"].load()
        assert (scores["number"] % (HEIGHT * WIDTH - 4) == 0).all()  # never the blind corner
    later = mae.isel(lead_time=slice(1, None)).mean("lead_time")
    assert later.sel(nowcaster=uri) < later.sel(nowcaster="persistence")

    status, printed, _ = _run(capsys, "promote", "--config", settings, *shared, "--json")
    decision = json.loads(printed)
    assert set(decision["scores"]) == {"persistence", "periodic", uri}
    assert decision["promoted"] == (min(decision["scores"], key=decision["scores"].get) == uri)
    assert status == (0 if decision["promoted"] else 1)

    status, printed, complaint = _run(
        capsys, "issue", "--nowcaster", uri, "--config", settings, "--out", tmp_path / "out",
        "--base-time", "2024-03-15T00:00", *shared, "--json",
    )  # fmt: skip
    assert status == 0, complaint
    files = json.loads(printed)["files"]
    issued = open_nowcast(files[0])
    assert issued.attrs["nowcaster_version"] == "1"
    assert len(issued.attrs["nowcaster_sha256"]) == 64
    assert issued["air"].attrs["units"] == "K"
    assert issued["lead_time"].values[-1] == np.timedelta64(18, "h")
    assert 260 < float(issued["air"].min()) < float(issued["air"].max()) < 300
    assert int(issued["air"].isnull().sum()) == 6 * 4
    assert "dry" not in issued.attrs["comment"]
    assert all(Path(file).stat().st_size > 5_000 for file in files)


def test_the_same_hour_yesterday_is_issued_by_its_name(capsys, tmp_path, settings, air):
    status, printed, complaint = _run(
        capsys, "issue", "--nowcaster", "periodic", "--config", settings, "--observations", air,
        "--lead-times", 180, 1440, "--out", tmp_path, "--work", tmp_path / "work", "--json",
    )  # fmt: skip
    assert status == 0, complaint
    issued = open_nowcast(json.loads(printed)["files"][0])
    with xr.open_dataset(air) as observed:
        yesterday = observed["air"].values[[-8, -1]]
    np.testing.assert_array_equal(issued["air"].isel(base_time=0), yesterday)


def test_the_same_hour_yesterday_of_what_has_no_cycle_is_refused(capsys, tmp_path, air):
    status, _, complaint = _run(
        capsys, "issue", "--nowcaster", "periodic", "--observations", air, "--out", tmp_path,
        "--set", "variable={name='air', units='K', long_name='air', valid_min=180, valid_max=340}",
    )  # fmt: skip
    assert status == 2
    assert "set variable.period_hours, such as 24" in complaint


def test_synthetic_rain_is_not_taken_for_another_variable(settings):
    with pytest.raises(ValueError, match="no variable 'air'; the dataset has"):
        experiments.observations(load(settings))


def test_the_settings_for_temperature_open_the_real_file(shared_data):
    path = shared_data / "era5" / "t2m_uk_2019-03.nc"
    if not path.is_file():
        pytest.skip(f"no real temperature: {path} is absent")
    config = load(TEMPERATURE)
    observed = experiments.observations(config, str(path))
    field = observed["t2m"]
    assert dict(field.sizes) == {"time": 744, "y": 33 // 2, "x": 49 // 2}
    assert field.attrs["units"] == "K"
    assert 265 < float(field.min()) < float(field.max()) < 292
    assert config.baselines == ("persistence", "periodic")
    blocks = [experiments.block(config, observed, split=name) for name in ("train", "test")]
    assert blocks[0].end < blocks[1].start
