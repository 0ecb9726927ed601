import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from nowcast.data.synthetic import synthesise
from nowcast.networks import NETWORKS
from nowcast.nowcasters import open_nowcaster
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.testing import check_nowcaster
from nowcast.training import fit, prepare

SETTINGS = {"convlstm": "{filters=[8]}", "cnn_lstm": "{filters=[4,8], units=16}"}


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def nowcaster(request, small_config, small_observed, tmp_path_factory):
    name = request.param
    config = small_config.replace(
        [f"network.name={name}", f"network.settings={SETTINGS[name]}", "training.steps_per_epoch=2"]
    )
    prepared = prepare(config, small_observed, work=tmp_path_factory.mktemp("work"))
    return fit(config, prepared, verbose=0)


def _nowcast(nowcaster, observed):
    return nowcaster.nowcast(
        observed,
        base_times=observed["time"].to_index()[4:6],
        lead_times=pd.to_timedelta([10, 20], unit="min"),
    )["rain_rate"].values


def test_every_network_keeps_the_contract(nowcaster, small_observed):
    check_nowcaster(nowcaster, small_observed)


def test_a_saved_nowcaster_gives_the_same_nowcast(nowcaster, small_observed, tmp_path):
    folder = nowcaster.save(tmp_path / "saved")
    loaded = open_nowcaster(folder)
    np.testing.assert_array_equal(
        _nowcast(loaded, small_observed), _nowcast(nowcaster, small_observed)
    )
    assert loaded.settings == nowcaster.settings
    assert loaded.sha256 == nowcaster.sha256
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "network.weights.h5",
        "settings.json",
    ]


@pytest.mark.parametrize("file", ["settings.json", "network.weights.h5"])
def test_one_changed_byte_is_refused(nowcaster, tmp_path, file):
    folder = nowcaster.save(tmp_path / "saved")
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(bytes(content))
    with pytest.raises(ValueError, match="not what was saved"):
        NeuralNowcaster.load(folder)


def test_an_unknown_setting_is_refused(nowcaster, tmp_path):
    folder = nowcaster.save(tmp_path / "saved")
    settings = json.loads((folder / "settings.json").read_text())
    with pytest.raises(ValueError, match="do not fit"):
        type(nowcaster.settings).from_dict({**settings, "loader_module": "os"})


def test_weights_of_another_version_of_the_network_are_refused(nowcaster, tmp_path):
    older = dataclasses.replace(nowcaster.settings, network_version=0)
    folder = NeuralNowcaster(older, nowcaster.weights).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="trained with version 0 of network"):
        NeuralNowcaster.load(folder)


def test_a_network_that_gives_nan_is_refused_rather_than_taken_for_missing(
    nowcaster, small_observed
):
    broken = NeuralNowcaster(nowcaster.settings, [np.nan * one for one in nowcaster.weights])
    with pytest.raises(ValueError, match="gave NaN"):
        _nowcast(broken, small_observed)


def test_a_folder_that_holds_no_nowcaster_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no saved nowcaster"):
        open_nowcaster(tmp_path)


def test_missing_input_stays_missing_and_does_not_spread(nowcaster, small_observed):
    holed = small_observed.copy(deep=True)
    holed["rain_rate"][3, 2:5, 7] = np.nan
    values = _nowcast(nowcaster, holed)
    assert np.isnan(values[:, :, 2:5, 7]).all()
    assert np.isnan(values).sum() == 2 * 2 * 3


def test_another_pixel_size_is_refused(nowcaster):
    finer = synthesise(hours=2, size=16, grid_spacing_m=1000.0)
    with pytest.raises(ValueError, match="trained on pixels of 2000 m"):
        _nowcast(nowcaster, finer)


def test_a_lead_time_it_does_not_give_is_refused(nowcaster, small_observed):
    with pytest.raises(ValueError, match="gives lead times from"):
        nowcaster.nowcast(
            small_observed,
            base_times=small_observed["time"].to_index()[4:5],
            lead_times=pd.to_timedelta([25], unit="min"),
        )


def test_a_larger_grid_is_taken_whole_or_in_tiles(nowcaster):
    larger = synthesise(hours=2, size=22).load()
    values = _nowcast(nowcaster, larger)
    assert values.shape == (2, 2, 22, 22)
    assert np.isfinite(values).all()
    if not nowcaster.settings.takes_any_grid:
        # The next tile begins at pixel 22 - 16; before, there is what the network makes of one.
        corner = larger.isel(y=slice(16), x=slice(16))
        np.testing.assert_allclose(
            values[..., :6, :6], _nowcast(nowcaster, corner)[..., :6, :6], rtol=1e-4, atol=1e-5
        )


def test_a_smaller_grid_is_taken_or_refused(nowcaster):
    smaller = synthesise(hours=2, size=12).load()
    if nowcaster.settings.takes_any_grid:
        assert np.isfinite(_nowcast(nowcaster, smaller)).all()
    else:
        with pytest.raises(ValueError, match=r"takes grids of \(16, 16\), .* or larger"):
            _nowcast(nowcaster, smaller)


def test_tiles_of_a_local_function_equal_the_whole_away_from_seams(nowcaster, monkeypatch):
    """The mean of the pixels around each, as of a network that sees two pixels far."""
    from scipy.ndimage import uniform_filter

    from nowcast.nowcasters import neural

    def local(_, frames):
        means = uniform_filter(frames[:, -1:], size=(1, 1, 5, 5), mode="constant")
        return np.repeat(means, 2, axis=1)

    monkeypatch.setattr(NeuralNowcaster, "_forecast", local)
    frames = np.random.default_rng(0).uniform(0, 9, (2, 3, 50, 70)).astype(np.float32)
    whole = local(None, frames)
    monkeypatch.setattr(neural, "LARGEST_GRID", 100)
    monkeypatch.setattr(neural, "TILE", 32)
    tiled = nowcaster.forecast(frames)
    size = nowcaster.settings.grid if not nowcaster.settings.takes_any_grid else (32, 32)
    seam = np.zeros((50, 70), bool)
    for (rows, columns), _ in nowcaster._tiles((50, 70)):
        assert (rows.stop - rows.start, columns.stop - columns.start) == size
        for edge in {rows.start, rows.stop} - {0, 50}:
            seam[max(edge - 2, 0) : edge + 2, columns] = True
        for edge in {columns.start, columns.stop} - {0, 70}:
            seam[rows, max(edge - 2, 0) : edge + 2] = True
    assert 0.1 < seam.mean() < 0.9
    np.testing.assert_allclose(tiled[..., ~seam], whole[..., ~seam], rtol=1e-5)
    assert np.abs(tiled - whole)[..., seam].max() > 0.01
