import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.conventions import RAIN_RATE
from nowcast.data.labels import UNKNOWN, labels_of, with_labels
from nowcast.data.series import names_of, series_of
from nowcast.data.synthetic import synthesise
from nowcast.frames import Block, Window
from nowcast.networks.heads import Head
from nowcast.nowcasters import open_nowcaster
from nowcast.nowcasters.saved import NeuralSettings
from nowcast.predictors import FREQUENCIES, SequencePredictor
from nowcast.rainrate import Transform
from nowcast.tables import plain, table
from nowcast.verification import case_times, save_scores
from nowcast.verification.sequences import labelled_times, verify_classes, verify_series

STEP = pd.Timedelta("10min")
LEADS = pd.to_timedelta([10, 20], unit="min")
POINTS = ((7000.0, -7000.0), (-3000.0, 1000.0))
SHARES = {"calm": 0.75, "wild": 0.25}
CALM, WILD = (1.0, 0.0), (0.0, 1.0)


def _settings(head, points=(), window=(2, 2), **provenance):
    return NeuralSettings(
        network="cnn_lstm",
        network_version=1,
        network_settings={},
        head=head,
        variable=RAIN_RATE,
        transform=Transform(),
        window=Window(*window, STEP),
        grid=(8, 8),
        grid_spacing=2000.0,
        grid_units="m",
        points=points,
        provenance=provenance,
    )


class _Known(SequencePredictor):
    """Gives what the test wants for each base time, without a network."""

    def __init__(self, settings, values):
        super().__init__(settings, [])
        self.values = values

    def predict(self, observed, *, base_times):  # noqa: ARG002
        values = np.stack([self.values(base_time) for base_time in base_times])
        return self._as_dataset(values.astype(np.float32), base_times)


@pytest.fixture(scope="module")
def observed():
    """Rain in 8 x 8 pixels; a pixel is never observed, and a frame less than half."""
    rain = synthesise(events=2, hours=2, size=8, seed=3).load()
    rain["rain_rate"][:, 2, 2] = np.nan
    rain["rain_rate"][6, :5] = np.nan
    return rain


@pytest.fixture(scope="module")
def baselines():
    return {"persistence": open_nowcaster("persistence")}


def _series(truth, points=(), *, off=0.0):
    """Give a predictor that knows the series, and is off by a little."""
    series = series_of(truth["rain_rate"], points)

    def values(base_time):
        return series.sel(time=base_time + LEADS).values + off

    return _Known(_settings(Head("series", labels=names_of(points)), points), values)


def _verify(compared, observed, **settings):
    cases = case_times(observed, nowcasters=compared, lead_times=LEADS, every=STEP)
    wanted = {"base_times": cases, "lead_times": LEADS, "baselines": ("persistence",)}
    return verify_series(compared, observed, **{**wanted, **settings})


@pytest.mark.parametrize("points", [(), POINTS])
def test_a_series_is_scored_by_hand_beside_the_reduced_baseline(observed, baselines, points):
    scores = _verify({**baselines, "known": _series(observed, points, off=0.5)}, observed)
    known = scores.sel(nowcaster="known")
    np.testing.assert_allclose(known["mae"], 0.5, atol=1e-6)
    np.testing.assert_allclose(known["me"], 0.5, atol=1e-6)
    series = series_of(observed["rain_rate"], points).values.reshape(2, 13, -1)
    for place, lead in enumerate((1, 2)):
        errors = [event[base] - event[base + lead] for event in series for base in range(1, 11)]
        errors = np.concatenate(errors)
        errors = errors[np.isfinite(errors)]
        persistence = scores.sel(nowcaster="persistence").isel(lead_time=place)
        assert persistence["number"] == len(errors)
        assert persistence["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-5)
        assert persistence["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-5)


def test_an_areal_mean_that_was_not_observed_is_not_scored(observed, baselines):
    scores = _verify({**baselines, "known": _series(observed)}, observed)
    # Of 20 cases, one has the frame that hardly shows anything as its truth; persistence starts
    # from it in another.
    assert scores["number"].values.tolist() == [[18, 18], [18, 18]]


def test_thresholds_of_a_series_are_of_its_own_values(observed, baselines):
    scores = _verify({**baselines, "known": _series(observed)}, observed, thresholds=(0.2,))
    known = scores.sel(nowcaster="known", threshold=0.2)
    assert (known["csi"] == 1.0).all()
    mean = series_of(observed["rain_rate"]).values.reshape(2, 13)
    later = mean[:, 2:12][np.isfinite(mean[:, 1:11])]  # where persistence has something to repeat
    events = (later >= 0.2).sum()
    assert int(known["tp_count"][0]) == events


def test_what_a_predictor_leaves_missing_counts_as_no_rain_and_is_told(observed, baselines):
    silent = _Known(_settings(Head("series", labels=("area",))), lambda _: np.full((2, 1), np.nan))
    scores = _verify({**baselines, "silent": silent}, observed)
    of_silence = scores.sel(nowcaster="silent")
    assert (of_silence["left_missing"] == 18).all()
    assert (of_silence["mae"] == -of_silence["me"]).all()
    assert "silent left up to 100.0 % missing" in table(scores)


def test_scores_of_a_series_do_not_depend_on_the_batch(observed, baselines):
    compared = {**baselines, "known": _series(observed, off=0.1)}
    one, other = (_verify(compared, observed, batch_cases=size) for size in (1, 50))
    xr.testing.assert_identical(one.drop_vars("seconds"), other.drop_vars("seconds"))
    assert one.attrs["protocol_sha256"] == other.attrs["protocol_sha256"]


def test_series_and_frames_and_other_points_have_protocols_of_their_own(observed, baselines):
    area = _verify({**baselines, "known": _series(observed)}, observed)
    points = _verify({**baselines, "known": _series(observed, POINTS)}, observed)
    protocol = json.loads(points.attrs["protocol"])
    assert protocol["labels"] == list(names_of(POINTS))
    assert protocol["head"] == "series"
    assert area.attrs["protocol_sha256"] != points.attrs["protocol_sha256"]


def test_predictors_of_different_series_do_not_compare(observed, baselines):
    compared = {**baselines, "a": _series(observed), "b": _series(observed, POINTS)}
    with pytest.raises(ValueError, match="a gives area; b gives y=7000 x=-7000, y=-3000 x=1000"):
        _verify(compared, observed)


def test_lead_times_beyond_those_of_the_predictor_are_refused(observed, baselines):
    leads = pd.to_timedelta([10, 30], unit="min")
    compared = {**baselines, "known": _series(observed)}
    cases = case_times(observed, nowcasters=compared, lead_times=leads, every=STEP)
    with pytest.raises(ValueError, match="0 days 00:30:00 was asked for"):
        verify_series(
            compared,
            observed,
            base_times=cases,
            lead_times=leads,
            baselines=("persistence",),
        )


def test_a_series_without_a_baseline_is_refused(observed):
    with pytest.raises(ValueError, match="absent: persistence"):
        _verify({"known": _series(observed)}, observed)


LABELS = np.array([1, 1, 0, 0, 0, 1, UNKNOWN, 0, 1, 0, 0, 0, 0])


@pytest.fixture(scope="module")
def labelled():
    rain = synthesise(hours=2, size=8).load()
    return with_labels(rain, LABELS, ["calm", "wild"])


def _teller(values, classes=("calm", "wild")):
    settings = _settings(Head("classes", labels=classes), **{FREQUENCIES: json.dumps(SHARES)})
    return _Known(settings, values)


def _scores(labelled, **tellers):
    cases = labelled_times(labelled, predictors=tellers, every=STEP)
    return verify_classes(tellers, labelled, base_times=cases, batch_cases=4)


def test_labels_are_scored_by_hand(labelled):
    # Twelve labelled base times less the first, which has one frame: 3 wild, 8 calm.
    said = {
        base: (0.9, 0.1) if place % 2 else (0.4, 0.6)
        for place, base in enumerate(labelled["time"].to_index())
    }
    scores = _scores(labelled, teller=_teller(said.get)).sel(nowcaster="teller")
    # Odd frames say calm (1, 3, 5, 7, 9, 11 of which 1, 5 are wild), even ones wild (8 is).
    assert scores["confusion"].values.tolist() == [[4, 4], [2, 1]]
    assert scores["accuracy"] == pytest.approx(5 / 11)
    assert scores["hit_rate"].values.tolist() == pytest.approx([4 / 8, 1 / 3])
    squared = 4 * (2 * 0.1**2) + 4 * (2 * 0.6**2) + 2 * (2 * 0.9**2) + 1 * (2 * 0.4**2)
    assert scores["brier"] == pytest.approx(squared / 11)


def test_the_baseline_says_the_frequencies_of_the_training_block(labelled):
    scores = _scores(labelled, teller=_teller(lambda _: WILD)).sel(nowcaster="climatology")
    assert scores["accuracy"] == pytest.approx(8 / 11)  # the most frequent class, always
    assert scores["hit_rate"].values.tolist() == [1.0, 0.0]
    assert scores["brier"] == pytest.approx((8 * 2 * 0.25**2 + 3 * 2 * 0.75**2) / 11)


def test_a_predictor_that_knows_scores_perfectly(labelled):
    truth = dict(zip(labelled["time"].to_index(), labels_of(labelled), strict=True))
    knowing = _teller(lambda base: (CALM, WILD)[truth[base]])
    scores = _scores(labelled, knowing=knowing).sel(nowcaster="knowing")
    assert (scores["accuracy"], scores["brier"]) == (1.0, 0.0)


def test_the_hit_rate_of_a_class_that_never_was_is_not_defined(labelled):
    calm = labelled.isel(time=slice(9, None))
    scores = _scores(calm, teller=_teller(lambda _: CALM))
    assert np.isnan(scores["hit_rate"].sel(nowcaster="teller")).values.tolist() == [False, True]
    rates = [row for row in plain(scores)["scores"] if row["score"] == "hit_rate"]
    assert [row["value"] for row in rates if row["observed_label"] == "wild"] == [None, None]


def test_silence_on_labels_counts_as_the_climatology_and_is_told(labelled):
    scores = _scores(labelled, silent=_teller(lambda _: (np.nan, np.nan)))
    assert scores["brier"][0] == scores["brier"][1]
    assert scores["left_missing"].values.tolist() == [0, 11]
    assert "silent left 11 cases missing, counted as the climatology" in table(scores)


def test_cases_have_a_label_and_all_input_frames_inside_the_block(labelled):
    times = labelled["time"].to_index()
    block = Block(times[4], times[9])
    teller = {"teller": _teller(lambda _: CALM)}
    cases = labelled_times(labelled, predictors=teller, every=STEP, block=block)
    assert cases.tolist() == times[[5, 7, 8, 9]].tolist()
    with pytest.raises(ValueError, match="has a label and all input frames"):
        labelled_times(labelled.isel(time=[6]), predictors=teller, every=STEP)


def test_labels_of_another_set_and_no_labels_are_refused(labelled):
    other = _teller(lambda _: CALM, classes=("dry", "wet"))
    with pytest.raises(ValueError, match="other tells dry, wet; the observations have calm, wild"):
        _scores(labelled, other=other)
    with pytest.raises(ValueError, match="the observations have no labels"):
        _scores(labelled.drop_vars("label"), teller=_teller(lambda _: CALM))


def test_scores_of_labels_are_written_read_and_tabled(labelled, tmp_path):
    scores = _scores(labelled, teller=_teller(lambda _: (0.3, 0.7)))
    with xr.open_dataset(save_scores(scores, tmp_path / "scores.nc")) as file:
        xr.testing.assert_allclose(file.load(), scores)
        assert file.attrs["protocol_sha256"] == scores.attrs["protocol_sha256"]
    printed = table(scores)
    assert printed.startswith("11 cases, base times 2024-01-01T00:10:00/2024-01-01T02:00:00")
    assert ["teller", "0.27", "0.76"] in [line.split() for line in printed.splitlines()]
