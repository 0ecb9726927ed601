import itertools

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from nowcast import plots
from nowcast.conventions import RAIN_RATE, REFLECTIVITY, Variable, build_nowcast
from nowcast.plots import maps

LAEA = {
    "grid_mapping_name": "lambert_azimuthal_equal_area",
    "latitude_of_projection_origin": 52.0,
    "longitude_of_projection_origin": 10.0,
    "false_easting": 0.0,
    "false_northing": 0.0,
}
KELVIN = Variable("t2m", "K", "2 m temperature", "air_temperature", 180.0, 340.0)
TIMES = pd.date_range("2024-06-01T12:00", periods=8, freq="10min")
BASE_TIME = TIMES[4]
LEAD_TIMES = pd.to_timedelta([10, 20, 30], unit="min")

# Machado et al. (2009), doi:10.1109/TVCG.2009.113, severity 1, on linear RGB.
COLOUR_VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
JUST_SEEN = 2.3  # CIELAB distance; Mahy et al. (1994), doi:10.1002/col.5080190207


def observations(values, variable=RAIN_RATE):
    count, height, width = values.shape
    return xr.Dataset(
        {variable.name: (("time", "y", "x"), values.astype(np.float32), variable.attributes)},
        coords={
            "time": TIMES[:count],
            "y": ("y", np.arange(height)[::-1] * 2000.0, {"units": "m"}),
            "x": ("x", np.arange(width) * 2000.0, {"units": "m"}),
            "crs": ((), 0, LAEA),
        },
    )


def persisted(observed, variable=RAIN_RATE, lead_times=LEAD_TIMES):
    last = observed[variable.name].sel(time=[BASE_TIME]).values[:, None]
    return build_nowcast(
        np.repeat(last, len(lead_times), axis=1),
        observed=observed,
        variable=variable,
        base_times=pd.DatetimeIndex([BASE_TIME]),
        lead_times=lead_times,
    ).assign_attrs(nowcaster="persistence")


@pytest.fixture
def rain():
    """A cell of 30 mm/h that moves two columns per frame over a wet edge, the rest dry."""
    values = np.zeros((8, 32, 32))
    values[:, :2, :] = 0.3
    for frame in range(8):
        values[frame, 10:16, 2 + 2 * frame : 8 + 2 * frame] = 30.0
    return observations(values)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def rgb(colour):
    return np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)])


def is_colour(picture, colour):
    return (picture == rgb(colour)).all(axis=-1)


def frames_of(path):
    with Image.open(path) as movie:
        for number in range(movie.n_frames):
            movie.seek(number)
            yield np.asarray(movie.convert("RGB"))


@pytest.fixture(params=["panel", "animation"])
def drawn(request, tmp_path):
    """Draw as a panel or as the last frame of an animation; give the pixels."""

    def draw(observed, nowcast):
        path = getattr(plots, request.param)(observed, nowcast, path=tmp_path / "drawn")
        return list(frames_of(path))[-1]

    return draw


def test_missing_is_drawn_in_its_own_colour_where_dry_is_white(rain, drawn):
    observed = rain.isel(time=slice(0, 5))  # nothing later: all that changes is the nowcast
    dry = persisted(observed)
    hole = (abs(dry["x"] - 48_000) < 9_000) & (abs(dry["y"] - 18_000) < 11_000)
    gappy = dry.assign(rain_rate=dry["rain_rate"].where(~hole))

    with_dry, with_hole = drawn(observed, dry), drawn(observed, gappy)

    changed = (with_dry != with_hole).any(axis=-1)
    assert changed.sum() > 1000
    assert is_colour(with_dry, maps.DRY_COLOUR)[changed].all()
    assert not is_colour(with_hole, maps.DRY_COLOUR)[changed].any()
    assert is_colour(with_hole, maps.MISSING_COLOUR)[changed].mean() > 0.5
    # The hatch lies between its colour and that of the ground.
    between = np.sort([rgb(maps.HATCH_COLOUR), rgb(maps.MISSING_COLOUR)], axis=0)
    hatched = with_hole[changed]
    assert ((hatched >= between[0] - 2) & (hatched <= between[1] + 2)).mean() > 0.99


def test_what_was_observed_later_is_drawn_when_it_is_there(rain, tmp_path):
    nowcast = persisted(rain)
    before = plots.panel(rain.isel(time=slice(0, 5)), nowcast, path=tmp_path / "before.png")
    after = plots.panel(rain, nowcast, path=tmp_path / "after.png")
    heavy = maps.RAIN_COLOURS[6]  # 20 to 50 mm/h
    assert pixels(after).shape[0] > pixels(before).shape[0]
    cells = [is_colour(pixels(path), heavy).sum() for path in (before, after)]
    assert cells[1] > 1.2 * cells[0]


def test_a_panel_has_at_most_six_lead_times_evenly_spaced():
    leads = pd.timedelta_range("5min", periods=12, freq="5min")
    assert list(maps._evenly(leads, 6) / pd.Timedelta("1min")) == [10, 20, 30, 40, 50, 60]
    assert list(maps._evenly(leads[:7], 6) / pd.Timedelta("1min")) == [5, 15, 25, 35]
    assert list(maps._evenly(leads[:3], 6)) == list(leads[:3])


def test_titles_name_lead_time_and_valid_time(rain):
    story = maps._Story(rain, persisted(rain))
    assert story.label(BASE_TIME) == "base time  12:40 UTC"
    assert story.label(BASE_TIME + LEAD_TIMES[2]) == "+30 min  13:10 UTC"
    assert story.label(TIMES[2]) == "\N{MINUS SIGN}20 min  12:20 UTC"
    assert story.titles == ["Rain rate nowcast by persistence", "base time 2024-06-01 12:40 UTC"]


def test_lead_times_of_whole_hours_are_told_in_hours():
    values = 280.0 + np.arange(8)[:, None, None] + np.zeros((1, 6, 6))
    observed = observations(values, KELVIN)
    nowcast = persisted(observed, KELVIN, pd.to_timedelta([1, 24], unit="h"))
    story = maps._Story(observed, nowcast)
    assert story.label(BASE_TIME + pd.Timedelta("24h")) == "+24 h  12:40 UTC"
    assert story.label(TIMES[1]) == "\N{MINUS SIGN}0.5 h  12:10 UTC"


def test_temperature_is_drawn_by_its_own_range_and_units():
    values = 275.0 + 2 * np.arange(8)[:, None, None] + np.zeros((1, 6, 6))
    observed = observations(values, KELVIN)
    scale = maps._Story(observed, persisted(observed, KELVIN)).scale
    assert scale.label == "2 m temperature (K)"
    # The frames drawn: from the first input, 277 K, to the last that came, 289 K.
    assert (scale.norm.vmin, scale.norm.vmax) == (277.0, 289.0)


def test_the_frames_shown_are_those_that_were_used(rain):
    nowcast = persisted(rain).assign_attrs(input_frames="2024-06-01T12:20:00Z 2024-06-01T12:40:00Z")
    assert list(maps._Story(rain, nowcast).inputs) == [TIMES[2], TIMES[4]]
    unknown = persisted(rain)
    assert list(maps._Story(rain, unknown).inputs) == list(TIMES[1:5])


def test_north_is_up_whatever_the_order_of_rows(rain, drawn):
    upside_down = rain.isel(y=slice(None, None, -1))
    one, other = (drawn(each, persisted(each)) for each in (rain, upside_down))
    assert (one == other).all()
    drawn_maps = one[:, :-110]  # not the legend, which has every colour
    north = is_colour(drawn_maps, maps.RAIN_COLOURS[0]).any(axis=1)
    heavy = is_colour(drawn_maps, maps.RAIN_COLOURS[6]).any(axis=1)
    assert np.flatnonzero(north)[0] < np.flatnonzero(heavy)[0]


def test_margins_without_data_are_cut_off():
    values = np.full((5, 60, 80), np.nan)
    values[:, 20:40, 30:50] = 1.0
    story = maps._Story(observations(values), persisted(observations(values)))
    assert story.nowcast_at(LEAD_TIMES[0]).shape == (24, 24)  # 20 and 2 % of 80 on each side
    assert story.grid.extent == pytest.approx((55.0, 103.0, 35.0, 83.0))


def test_nothing_observed_at_all_can_be_drawn(drawn):
    observed = observations(np.full((5, 16, 16), np.nan))
    picture = drawn(observed, persisted(observed))
    assert is_colour(picture, maps.MISSING_COLOUR).mean() > 0.2


def test_a_constant_field_of_another_quantity_can_be_drawn(drawn):
    observed = observations(np.full((5, 16, 16), 20.0), REFLECTIVITY)
    picture = drawn(observed, persisted(observed, REFLECTIVITY))
    assert is_colour(picture, maps.MISSING_COLOUR).mean() < 0.005  # the legend, edges of letters


def test_the_mean_of_an_ensemble_is_drawn(rain):
    alone = persisted(rain)
    values = np.stack([alone["rain_rate"].values, 3 * alone["rain_rate"].values], axis=1)
    ensemble = build_nowcast(
        values,
        observed=rain,
        variable=RAIN_RATE,
        base_times=pd.DatetimeIndex([BASE_TIME]),
        lead_times=LEAD_TIMES,
    )
    story = maps._Story(rain, ensemble)
    assert story.made_by == "ensemble mean"
    assert story.nowcast_at(LEAD_TIMES[0]).max() == 60.0


def test_an_animation_has_a_frame_per_input_and_per_lead_time(rain, tmp_path):
    path = plots.animation(rain, persisted(rain), path=tmp_path / "side-by-side.gif")
    with Image.open(path) as movie:
        assert movie.n_frames == 4 + 3
        assert movie.info["loop"] == 0  # for ever
    observed = rain.isel(time=slice(0, 5))
    alone = plots.animation(observed, persisted(observed), path=tmp_path / "alone.gif")
    assert len(list(frames_of(alone))) == 4 + 3
    assert Image.open(alone).width < Image.open(path).width


def test_an_animation_moves_and_keeps_the_colours_of_the_scale(rain, tmp_path):
    path = plots.animation(rain, persisted(rain), path=tmp_path / "rain.gif")
    heavy = [is_colour(frame, maps.RAIN_COLOURS[6]) for frame in frames_of(path)]
    middle = heavy[0].shape[1] // 2 - 30
    left = [np.flatnonzero(each[:, :middle].any(axis=0)).mean() for each in heavy]
    assert (np.diff(left) > 0).all()  # observed to the end
    right = [np.flatnonzero(each[:, middle:-100].any(axis=0)).mean() for each in heavy]
    assert right[3] > right[0]  # observed up to the base time, and the nowcast persists
    assert right[4:] == pytest.approx([right[3]] * 3, abs=1)


def test_an_observed_frame_that_is_not_there_is_said_to_be_so(rain):
    nowcast = persisted(rain)
    gappy = rain.drop_sel(time=TIMES[5])
    cells = maps._animation_story(maps._Story(gappy, nowcast))
    assert cells[4][0] == ("no frame observed  +10 min  12:50 UTC", None)
    assert cells[5][0][0] == "observed  +20 min  13:00 UTC"
    assert cells[5][1][0] == "nowcast  +20 min  13:00 UTC"


def test_several_base_times_are_refused(rain, tmp_path):
    nowcast = persisted(rain)
    second = nowcast.assign_coords(base_time=nowcast["base_time"] + np.timedelta64(10, "m"))
    second["valid_time"] = second["valid_time"] + np.timedelta64(10, "m")
    both = xr.concat([nowcast, second], dim="base_time")
    with pytest.raises(ValueError, match=r"the nowcast has 2; select one"):
        plots.panel(rain, both, path=tmp_path / "panel.png")


def test_another_grid_is_refused(rain, tmp_path):
    with pytest.raises(ValueError, match=r"must be on one grid; 'x' has 31 values"):
        plots.panel(rain.isel(x=slice(1, None)), persisted(rain), path=tmp_path / "panel.png")


def test_a_failing_plot_leaves_what_was_there(rain, tmp_path, monkeypatch):
    path = plots.panel(rain, persisted(rain), path=tmp_path / "panel.png")
    before = path.read_bytes()

    def fail_in_the_middle(_, target, *_more, **_named):
        target.write_bytes(b"\x89PNG half")
        raise OSError("disk full")

    monkeypatch.setattr("PIL.Image.Image.save", fail_in_the_middle)
    with pytest.raises(OSError, match="disk full"):
        plots.panel(rain, persisted(rain), path=path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["panel.png"]


def test_a_failing_animation_leaves_nothing(rain, tmp_path, monkeypatch):
    def fail_in_the_middle(_, target, *_more, **_named):
        target.write_bytes(b"GIF89a half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail_in_the_middle)
    with pytest.raises(OSError, match="disk full"):
        plots.animation(rain, persisted(rain), path=tmp_path / "loop.gif")
    assert list(tmp_path.iterdir()) == []


def cielab(colours, vision):
    values = np.array([rgb(colour) for colour in colours]) / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    linear = (linear @ np.array(vision).T).clip(0.0, 1.0)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0)
    differences = [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])]
    return np.stack(differences, axis=1)


@pytest.mark.parametrize("vision", COLOUR_VISION)
def test_rain_dry_and_missing_differ_for_every_colour_vision(vision):
    colours = [maps.DRY_COLOUR, maps.MISSING_COLOUR, *maps.RAIN_COLOURS]
    seen = cielab(colours, COLOUR_VISION[vision])
    distances = [np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)]
    assert min(distances) > 6 * JUST_SEEN
