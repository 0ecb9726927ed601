"""What comes with nowcast: each folder that is there keeps the contract and is described."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.conventions import VARIABLES
from nowcast.data.synthetic import synthesise
from nowcast.nowcasters import open_nowcaster, pretrained
from nowcast.nowcasters.pretrained import CARD, PRETRAINED, folder_of
from nowcast.rainrate import to_reflectivity
from nowcast.testing import check_nowcaster


@pytest.fixture(scope="module", params=sorted(PRETRAINED))
def shipped(request):
    folder = folder_of(request.param)
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not there yet")
    return open_nowcaster("pretrained", variable=request.param)


@pytest.fixture(scope="module")
def observed(shipped):
    """Synthetic rain on a small grid of its pixels, as it comes to the nowcaster."""
    settings = shipped.settings
    rain = synthesise(
        hours=2,
        size=16,
        seed=5,
        step_minutes=round(settings.window.step / pd.Timedelta("1min")),
        grid_spacing_m=settings.grid_spacing * (1000.0 if settings.grid_units == "km" else 1.0),
    ).load()
    if settings.variable.name == "rain_rate":
        return rain
    dbz = to_reflectivity(rain["rain_rate"].values).clip(0.0, None)
    variable = VARIABLES[settings.variable.name]
    field = xr.Variable(("time", "y", "x"), dbz.astype(np.float32), variable.attributes)
    return rain.drop_vars("rain_rate").assign({variable.name: field})


def test_what_comes_with_nowcast_keeps_the_contract(shipped, observed):
    check_nowcaster(shipped, observed)


def test_it_is_calibrated_and_corrects_extrapolation(shipped):
    assert shipped.settings.network == "lagrangian"
    assert shipped.postprocessing is not None


def test_where_nothing_rains_it_forecasts_nothing(shipped, observed):
    name = shipped.settings.variable.name
    dry = observed.copy(deep=True)
    dry[name][:] = shipped.settings.variable.valid_min
    window = shipped.settings.window
    nowcast = shipped.nowcast(
        dry,
        base_times=dry["time"].to_index()[window.input_frames : window.input_frames + 1],
        lead_times=pd.TimedeltaIndex([window.step, window.step * window.lead_frames]),
    )
    assert (nowcast[name] == shipped.settings.variable.valid_min).all()
    assert float(nowcast["probability_of_exceedance"].max()) < 0.2


def test_it_has_a_card(shipped):
    card = (folder_of(shipped.settings.variable.name) / CARD).read_text()
    assert shipped.sha256[:12] in card or shipped.settings.network in card


def test_of_another_quantity_there_is_none():
    with pytest.raises(ValueError, match=r"forecasts 't2m'; .* rain_rate and reflectivity; train"):
        folder_of("t2m")


def test_one_that_was_not_shipped_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"holds no saved nowcaster: manifest\.json is absent"):
        open_nowcaster("pretrained")
