"""What makes scores comparable, and the refusal of those that are not."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from impostors import Blurred

from nowcast.data.synthetic import synthesise
from nowcast.nowcasters import open_nowcaster
from nowcast.verification import ProtocolError, combine, save_scores, standard_measures, verify
from nowcast.verification.protocol import SCORING_VERSION, check_same_protocol, protocol_of
from nowcast.verification.views import Fields

LEADS = pd.to_timedelta([10, 20], unit="min")
THRESHOLDS = (0.5, 2.0)
BASELINES = {name: open_nowcaster(name) for name in ("persistence", "extrapolation")}


@pytest.fixture(scope="module")
def observed():
    return synthesise(events=2, hours=2, size=24, seed=3).load()


def _verify(observed, nowcasters=None, *, thresholds=THRESHOLDS, **settings):
    chosen = {
        "base_times": observed["time"].to_index()[3:9],
        "lead_times": LEADS,
        "measures": standard_measures(observed, thresholds, view=Fields(), basic=True),
    }
    return verify(
        {**BASELINES, **(nowcasters or {})}, observed, thresholds=thresholds, **chosen, **settings
    )


@pytest.fixture(scope="module")
def scores(observed):
    return _verify(observed)


def test_scores_of_one_protocol_stand_beside_each_other(observed, scores):
    blurred = _verify(observed, {"blurred": Blurred()})
    together = combine({"a": scores, "b": blurred})
    assert together["nowcaster"].values.tolist() == ["persistence", "extrapolation", "blurred"]
    xr.testing.assert_allclose(
        together["csi"].sel(nowcaster="blurred"), blurred["csi"].sel(nowcaster="blurred")
    )
    for name in ("csi_gain", "csi_gain_band", "csi_gain_p", "csi_gain_p_holm", "csi_gain_pooled_p"):
        xr.testing.assert_allclose(together[name], blurred[name])  # made again from the blocks
    assert together.attrs["protocol_sha256"] == scores.attrs["protocol_sha256"]


def test_one_name_with_two_outcomes_bears_the_names_of_the_runs(observed):
    one = _verify(observed, {"mine": open_nowcaster("persistence")})
    other = _verify(observed, {"mine": open_nowcaster("extrapolation")})
    names = combine({"a": one, "b": other})["nowcaster"].values.tolist()
    assert names == ["persistence", "extrapolation", "mine", "mine (b)"]


def _pixel(observed):
    changed = observed.copy(deep=True)
    changed["rain_rate"][0, 0, 0] += 0.01
    return _verify(changed)


CHANGES = {
    "data_fingerprint": _pixel,
    "thresholds": lambda observed: _verify(observed, thresholds=(0.5, 2.1)),
    "split": lambda observed: _verify(observed, split="test 2024-01-01/2024-01-02"),
    "selection": lambda observed: _verify(observed, selection="wet"),
    "baselines.extrapolation.input_frames": lambda observed: _verify(
        observed, {"extrapolation": open_nowcaster("extrapolation", input_frames=2)}
    ),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_change_of_the_protocol_is_refused_by_its_name(observed, scores, field):
    with pytest.raises(ProtocolError, match=rf"before and after .* differ in .*{field}: "):
        combine({"before": scores, "after": CHANGES[field](observed)})


def test_nothing_but_the_changed_field_is_named(observed, scores):
    with pytest.raises(ProtocolError) as refused:
        combine({"a": scores, "b": CHANGES["split"](observed)})
    told = str(refused.value).split("differ in ")[1]
    assert told.startswith("split: all and test 2024-01-01/2024-01-02; verify them together")


def test_a_new_version_of_the_scoring_code_is_another_protocol(observed, scores, monkeypatch):
    import nowcast.verification.comparison as comparison

    newer = SCORING_VERSION + 1
    given = comparison.Protocol
    monkeypatch.setattr(
        comparison, "Protocol", lambda **about: given(**about, scoring_version=newer)
    )
    with pytest.raises(ProtocolError, match=f"scoring_version: {SCORING_VERSION} and {newer}"):
        combine({"a": scores, "b": _verify(observed)})


def test_the_commit_is_told_and_not_hashed(scores):
    assert scores.attrs["code_version"]
    assert "commit" not in scores.attrs["protocol"]


def test_a_protocol_changed_by_hand_is_found_out(scores, tmp_path):
    record = json.loads(scores.attrs["protocol"])
    forged = scores.assign_attrs(protocol=json.dumps({**record, "cases": 10_000}))
    with (
        xr.open_dataset(save_scores(forged, tmp_path / "forged.nc")) as read,
        pytest.raises(ProtocolError, match="changed by hand"),
    ):
        protocol_of(read)
    with pytest.raises(ProtocolError, match="no scores were given"):
        combine({})
    with pytest.raises(ProtocolError, match="no protocol"):
        check_same_protocol({"a": scores.drop_attrs()})


def test_scores_from_files_combine_as_they_do_in_memory(observed, scores, tmp_path):
    other = _verify(observed, {"blurred": Blurred()})
    together = combine({"a": scores, "b": other})
    read = {}
    for name, one in {"a": scores, "b": other}.items():
        with xr.open_dataset(save_scores(one, tmp_path / f"{name}.nc")) as file:
            read[name] = file.load()
    again = combine(read)
    assert set(again) == set(together)
    for name in together.data_vars:
        if together[name].dtype.kind in "fib":
            np.testing.assert_allclose(again[name].values, together[name].values)
