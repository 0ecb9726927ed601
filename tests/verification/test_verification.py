import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.data.synthetic import synthesise
from nowcast.nowcasters import open_nowcaster
from nowcast.verification import case_times, verify
from nowcast.verification.scores import Errors, Events

LEADS = pd.to_timedelta([10, 20], unit="min")


@pytest.fixture(scope="module")
def observed():
    return synthesise(events=2, hours=2, size=24, seed=3).load()


@pytest.fixture(scope="module")
def baselines():
    return {name: open_nowcaster(name) for name in ("persistence", "extrapolation")}


def _verify(nowcasters, observed, **settings):
    cases = case_times(
        observed, nowcasters=nowcasters, lead_times=LEADS, every=pd.Timedelta("20min")
    )
    defaults = {"base_times": cases, "lead_times": LEADS, "thresholds": (0.5, 2.0)}
    thresholds = settings.get("thresholds", (0.5, 2.0))
    defaults["measures"] = [Events(thresholds), Errors("rain_rate")]
    return verify(nowcasters, observed, **{**defaults, **settings})


@pytest.fixture(scope="module")
def plain(observed, baselines):
    """The scores of the baselines alone."""
    return _verify(baselines, observed)


class _Peeking:
    """Knows the future; leaves some of it missing, if asked to."""

    input_frames, step = 1, pd.Timedelta("10min")

    def __init__(self, hole=slice(0)):
        self.hole = hole

    def nowcast(self, observed, *, base_times, lead_times):
        nowcast = open_nowcaster("persistence").nowcast(
            observed, base_times=base_times, lead_times=lead_times
        )
        future = self.future["rain_rate"].sel(time=nowcast["valid_time"]).values.copy()
        future[..., self.hole, :] = np.nan
        return nowcast.assign(rain_rate=nowcast["rain_rate"].copy(data=future))


def test_pooled_scores_equal_a_brute_force_count(observed, baselines, plain):
    times = observed["time"].to_index()
    hits = misses = alarms = squared = number = 0
    cases = case_times(
        observed, nowcasters=baselines, lead_times=LEADS, every=pd.Timedelta("20min")
    )
    reached = baselines["extrapolation"].nowcast(observed, base_times=cases, lead_times=LEADS)
    for case, base_time in enumerate(cases):
        forecast = observed["rain_rate"].values[times.get_loc(base_time)]
        truth = observed["rain_rate"].values[times.get_loc(base_time + LEADS[1])]
        counted = np.isfinite(reached["rain_rate"].values[case, 1])
        hits += ((forecast >= 2) & (truth >= 2) & counted).sum()
        misses += ((forecast < 2) & (truth >= 2) & counted).sum()
        alarms += ((forecast >= 2) & (truth < 2) & counted).sum()
        squared += ((forecast - truth).astype(float)[counted] ** 2).sum()
        number += counted.sum()
    one = plain.sel(nowcaster="persistence", lead_time=LEADS[1])
    assert one["csi"].sel(threshold=2.0).item() == pytest.approx(hits / (hits + misses + alarms))
    assert one["rmse"].item() == pytest.approx(np.sqrt(squared / number), rel=1e-6)
    assert one["number"].item() == number


def test_scores_are_the_same_to_the_last_bit_whatever_the_batch_and_the_chunks(observed, baselines):
    members = {**baselines, "steps": open_nowcaster("steps", members=3)}
    cases = observed["time"].to_index()[[3, 4, 6, 16, 17]]
    everything = {"references": ("steps",), "measures": None, "base_times": cases}
    before = _verify(members, observed, **everything, batch_cases=2)
    for batch_cases in (1, 50):
        other = _verify(members, observed.chunk(time=5), **everything, batch_cases=batch_cases)
        xr.testing.assert_identical(other.drop_vars("seconds"), before.drop_vars("seconds"))
    assert {"fss", "power", "effective_resolution", "crps", "brier", "rank_count", "ssim",
            "intensity_scale_skill", "csi_gain_p", "csi_pooled_band", "probability_blocks",
            "observed_frequency_pooled_band"} <= set(before)  # fmt: skip


def test_a_perfect_nowcast_scores_perfectly(observed, baselines):
    peeking = _Peeking()
    peeking.future = observed
    scores = _verify({**baselines, "peeking": peeking}, observed)
    perfect = scores.sel(nowcaster="peeking")
    assert perfect["csi"].values == pytest.approx(1.0)
    assert perfect["rmse"].values == pytest.approx(0.0, abs=1e-6)


def test_every_nowcaster_is_scored_on_the_same_pixels(observed, baselines, plain):
    holed = observed.copy(deep=True)
    holed["rain_rate"][5:9, 3:6, :] = np.nan
    scores = _verify(baselines, holed)
    number = scores["number"]
    assert (number.sel(nowcaster="persistence") == number.sel(nowcaster="extrapolation")).all()
    assert number.sum() < plain["number"].sum()


def test_frames_between_two_cases_are_never_loaded(observed, baselines):
    poisoned = observed.copy(deep=True)
    times = observed["time"].to_index()
    cases = times[[4, 20]]
    assert LEADS[-1] < cases[1] - cases[0]
    for between in (10, 11):
        poisoned["rain_rate"][between] = np.nan

    def load(block):
        assert np.isfinite(block).all(), "a frame between two cases was loaded"
        return block

    lazy = poisoned.chunk(time=1)
    watched = lazy.assign(
        rain_rate=lazy["rain_rate"].copy(data=lazy["rain_rate"].data.map_blocks(load))
    )
    from nowcast.verification.cases import near as around

    near = around(watched, cases, pd.Timedelta("-20min"), LEADS[-1])
    assert list(near["time"].to_index()) == list(times[[*range(2, 7), *range(18, 23)]])
    assert _verify(baselines, observed, base_times=cases)["number"].sum() > 0


def test_a_case_without_sight_is_left_out_for_everyone(observed, baselines):
    import json

    blind = observed.copy(deep=True)
    blind["rain_rate"][6] = np.nan
    scores = _verify(baselines, blind)
    before = json.loads(_verify(baselines, observed).attrs["protocol"])["cases"]
    assert 0 < json.loads(scores.attrs["protocol"])["cases"] < before
    blind["rain_rate"][:] = np.nan
    with pytest.raises(ValueError, match="no observed pixel"):
        _verify(baselines, blind)


def test_what_a_nowcaster_leaves_missing_counts_as_no_rain_and_is_told(observed, baselines):
    peeking = _Peeking(hole=slice(0, 12))
    peeking.future = observed
    scores = _verify({**baselines, "peeking": peeking}, observed)
    shy = scores.sel(nowcaster="peeking")
    assert (shy["left_missing"] > 0).all()
    assert (shy["pod"].sel(threshold=0.5) < 1).all()
    assert (shy["number"] == scores["number"].sel(nowcaster="persistence")).all()
    assert (scores["left_missing"].sel(nowcaster="persistence") == 0).all()


def test_missing_is_not_taken_for_zero_where_zero_means_something(observed, baselines):
    kelvin = (observed.rename(rain_rate="t2m") + 280.0).assign_coords(observed.coords)
    kelvin["t2m"].attrs = {"units": "K", "grid_mapping": "crs"}

    class Shy(_Peeking):
        def nowcast(self, observed, *, base_times, lead_times):
            nowcast = open_nowcaster("persistence").nowcast(
                observed, base_times=base_times, lead_times=lead_times
            )
            return nowcast.where(nowcast["y"] > float(nowcast["y"].mean()))

    assert (_verify(baselines, kelvin)["rmse"] > 0).all()
    with pytest.raises(ValueError, match=r"shy leaves .* pixels missing where it is scored"):
        _verify({**baselines, "shy": Shy()}, kelvin)


@pytest.fixture(scope="module")
def kelvin():
    """Three days of hourly temperature: a daily cycle, some missing, and a trend of 1 K a day."""
    hours = np.arange(72)
    cycle = 280 + 5 * np.sin(2 * np.pi * hours / 24) + hours / 24
    values = (cycle[:, None, None] + np.zeros((1, 3, 4))).astype(np.float32)
    values[30, 0, 0] = np.nan
    return xr.Dataset(
        {"t2m": (("time", "y", "x"), values, {"units": "K", "grid_mapping": "crs"})},
        coords={
            "time": pd.date_range("2024-03-01", periods=72, freq="1h"),
            "y": ("y", 50.0 + np.arange(3), {"units": "degrees_north"}),
            "x": ("x", np.arange(4.0), {"units": "degrees_east"}),
            "crs": ((), 0, {"grid_mapping_name": "latitude_longitude"}),
        },
    )


def _verify_kelvin(kelvin, *, period="24h", thresholds=(), names=("persistence", "periodic")):
    own = {"periodic": {"period": pd.Timedelta(period), "step": pd.Timedelta("1h")}}
    nowcasters = {name: open_nowcaster(name, **own.get(name, {})) for name in names}
    return verify(
        nowcasters,
        kelvin,
        base_times=kelvin["time"].to_index()[30:36],
        lead_times=pd.to_timedelta([6, 24], unit="h"),
        thresholds=thresholds,
        baselines=names,
    )


def test_other_variables_are_scored_without_thresholds_beside_baselines_of_their_own(kelvin):
    scores = _verify_kelvin(kelvin)
    assert scores["csi"].size == 0
    yesterday = scores.sel(nowcaster="periodic")
    # The trend is 1 K a day and the cycle the same every day: yesterday is 1 K too cold.
    assert yesterday["me"].values == pytest.approx(-1.0, abs=1e-4)
    assert yesterday["mae"].values == pytest.approx(1.0, abs=1e-4)
    still = scores.sel(nowcaster="persistence")
    assert still["mae"].values[0] > 3
    assert still["mae"].values[1] == pytest.approx(1.0, abs=1e-4)


def test_scores_without_thresholds_are_written_and_read_again(kelvin, tmp_path):
    from nowcast.verification import save_scores

    scores = _verify_kelvin(kelvin)
    with xr.open_dataset(save_scores(scores, tmp_path / "scores.nc")) as read:
        xr.testing.assert_equal(read.load(), scores)
        assert read.attrs == scores.attrs


def test_only_what_every_baseline_reaches_is_counted(kelvin):
    one = dict(lead_time=pd.Timedelta("24h"))
    both = _verify_kelvin(kelvin)["number"].sel(one)
    # Frame 30, of which a pixel is missing, is what both repeat for the first base time.
    assert both.values.tolist() == [6 * 12 - 1] * 2
    alone = _verify_kelvin(kelvin, names=("persistence",))["number"].sel(one)
    assert alone.values.tolist() == [6 * 12 - 1]
    six = dict(lead_time=pd.Timedelta("6h"))
    assert _verify_kelvin(kelvin)["number"].sel(six).values.tolist() == [6 * 12 - 1] * 2


def test_the_protocol_tells_the_baselines_and_that_missing_is_no_value(kelvin):
    import json

    protocol = json.loads(_verify_kelvin(kelvin).attrs["protocol"])
    assert protocol["baselines"] == {
        "persistence": {"input_frames": 1, "step_minutes": 60.0},
        "periodic": {"input_frames": 24, "step_minutes": 60.0},
    }
    assert protocol["missing_rule"].startswith(
        "counted: pixels observed at the valid time and reached by persistence and periodic; "
    )
    assert protocol["missing_rule"].endswith("is refused")
    hashes = {
        _verify_kelvin(kelvin, **change).attrs["protocol_sha256"]
        for change in ({}, {"period": "12h"}, {"names": ("persistence",)}, {"thresholds": (283.0,)})
    }
    assert len(hashes) == 4


def test_no_baseline_at_all_is_refused(kelvin):
    with pytest.raises(ValueError, match="one or more baselines"):
        _verify_kelvin(kelvin, names=())


def test_the_baselines_cannot_be_left_out(observed, baselines):
    with pytest.raises(ValueError, match="absent: extrapolation"):
        _verify({"persistence": baselines["persistence"]}, observed)


@pytest.mark.parametrize("change", ["pixel", "threshold", "lead_time", "cases"])
def test_another_protocol_has_another_hash(observed, baselines, plain, change):
    changed, settings = observed.copy(deep=True), {}
    if change == "pixel":
        changed["rain_rate"][0, 0, 0] += 0.01
    if change == "threshold":
        settings = {"thresholds": (0.5, 2.1)}
    if change == "lead_time":
        settings = {"lead_times": LEADS[:1]}
    if change == "cases":
        settings = {"base_times": observed["time"].to_index()[3:5]}
    other = _verify(baselines, changed, **settings)
    assert other.attrs["protocol_sha256"] != plain.attrs["protocol_sha256"]


def test_cases_lie_whole_in_the_block(observed, baselines):
    from nowcast.frames import Block

    times = observed["time"].to_index()
    block = Block(times[2], times[10])
    cases = case_times(
        observed, nowcasters=baselines, lead_times=LEADS, every=pd.Timedelta("1min"), block=block
    )
    assert list(cases) == list(times[4:9])


@pytest.mark.parametrize(
    ("minutes", "told"),
    [
        ([0], "a lead time must be above 0; received 0 days 00:00:00"),
        ([-10, 10], "a lead time must be above 0; received -1 days"),
        ([7], "in steps of 0 days 00:07:00; .* multiples of the step between the frames"),
    ],
)
def test_lead_times_of_which_there_can_be_no_case_are_told(observed, baselines, minutes, told):
    leads = pd.to_timedelta(minutes, unit="min")
    with pytest.raises(ValueError, match=told):
        case_times(observed, nowcasters=baselines, lead_times=leads, every=pd.Timedelta(0))


def test_no_case_is_an_error(observed, baselines):
    with pytest.raises(ValueError, match="no base time"):
        case_times(
            observed.isel(time=slice(3)),
            nowcasters=baselines,
            lead_times=LEADS,
            every=pd.Timedelta("10min"),
        )


@pytest.mark.parametrize("fault", [KeyError, ConnectionError])
def test_only_a_missing_frame_accuses_of_seeing_the_future_and_no_lost_server(
    observed, baselines, fault
):
    class Failing:
        input_frames, step = 1, pd.Timedelta("10min")

        def nowcast(self, observed, *, base_times, lead_times):
            if observed["time"].to_index()[-1] == base_times[-1]:
                raise fault("without the future")
            return open_nowcaster("persistence").nowcast(
                observed, base_times=base_times, lead_times=lead_times
            )

    compared = {**baselines, "failing": Failing()}
    if fault is ConnectionError:
        with pytest.raises(ConnectionError, match="without the future"):
            _verify(compared, observed)
    else:
        assert _verify(compared, observed)["sees_future"].values.tolist() == [False, False, True]
