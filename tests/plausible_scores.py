"""Scores of every kind as a verification gives them, made up, for figures and reports.

Shapes, names and attributes are those of `nowcast.verification`; the figures fall with lead time
and threshold as those of real nowcasts do. What is asked of a nowcaster is said by its `Made`.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

RAIN = "mm h-1"
SCALES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
WAVELENGTHS = 128.0 / np.arange(1, 33)
REFERENCES = ("persistence", "extrapolation", "steps", "smoothed-extrapolation")
REGIMES = ["advection: slow", "advection: fast", "evolution: growing", "evolution: decaying",
           "initiation: new rain"]  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What a made-up nowcaster is like."""

    minutes: float  # in which its CSI falls to a third
    bias: float = 1.0
    sharp_km: float = 2.0  # effective resolution at the last lead time
    members: int = 1
    sees_future: bool = False
    seconds: float = 0.1
    missing: float = 0.0  # part of the pixels that it leaves missing


MADE = {
    "persistence": Made(20.0, seconds=0.001),
    "extrapolation": Made(38.0, sharp_km=3.0),
    "steps": Made(41.0, members=12, sharp_km=3.5, seconds=2.4),
    "smoothed-extrapolation": Made(42.0, sharp_km=14.0, bias=0.85),
    "convlstm": Made(46.0, sharp_km=16.0, bias=0.8, missing=0.021),
    "unet-probabilistic": Made(44.0, sharp_km=8.0, bias=1.1, members=8),
}


def plausible_scores(made=None, *, thresholds=(0.1, 1.0, 5.0, 10.0), leads=12, seed=0):
    """Give a dataset with every variable that a report can show."""
    made = MADE if made is None else made
    generator = np.random.default_rng(seed)
    minutes = np.arange(1, leads + 1) * 5.0
    coordinates = {
        "nowcaster": list(made),
        "threshold": ("threshold", list(thresholds), {"units": RAIN}),
        "lead_time": pd.to_timedelta(minutes, unit="min"),
        "bound": ["low", "high"],
        "reference": _references(made),
        "scale": ("scale", SCALES, {"units": "km"}),
        "component_scale": ("component_scale", SCALES, {"units": "km"}),
        "wavelength": ("wavelength", WAVELENGTHS, {"units": "km"}),
        "probability_bin": np.arange(10),
        "rank": np.arange(13),
        "regime": REGIMES,
        "definition": ("regime", [f"what is meant by {name}" for name in REGIMES]),
    }
    scores = xr.Dataset(coords=coordinates)
    for part in (_events, _gains, _errors, _scales, _spectra, _probabilities, _groups):
        scores.update(part(made, np.array(thresholds), minutes, generator))
    return _stamped(scores, made, thresholds, minutes)


def _references(made):
    return [name for name in made if name in REFERENCES]


def _stamped(scores, made, thresholds, minutes):
    for name, units in {
        "csi": "1", "pod": "1", "far": "1", "frequency_bias": "1", "mae": RAIN, "rmse": RAIN,
        "me": RAIN, "crps": RAIN, "minutes_gained": "min", "effective_resolution": "km",
        "spread": RAIN, "power": "mm2 h-2 km", "correlation": "1", "fss": "1",
    }.items():  # fmt: skip
        scores[name].attrs = {
            "long_name": name.replace("_", " "),
            "units": units,
            "references": "doi:10.1002/9781119960003",
        }
    scores["csi"].attrs["long_name"] = "critical success index"
    record = {
        "data_fingerprint": "0f" * 32,
        "variable": "rain_rate",
        "units": RAIN,
        "split": "validation",
        "period": "2017-06-01T00:00:00/2017-08-31T23:55:00",
        "cases": 512,
        "lead_minutes": list(minutes),
        "thresholds": list(thresholds),
        "baselines": {name: {"input_frames": 3, "step_minutes": 5.0} for name in list(made)[:2]},
        "missing_rule": "counted: pixels observed at the valid time and reached by the baselines",
        "measures": {"fss": {"scales": SCALES}, "events": {"thresholds": list(thresholds)}},
    }
    text = json.dumps(record)
    return scores.assign_attrs(
        title="verification of nowcasts",
        protocol=text,
        protocol_sha256=hashlib.sha256(text.encode()).hexdigest(),
        code_version="0.1.0 8daa2a0",
        references="\n".join(_references(made)),
        resampled="31 events",
    )


def _banded(scores, name, dims, values, width):
    scores[name] = (dims, values)
    scores[f"{name}_band"] = ((*dims, "bound"), np.stack([values - width, values + width], -1))


def _events(made, thresholds, minutes, generator):
    scores, dims = xr.Dataset(), ("nowcaster", "threshold", "lead_time")
    kinds = list(made.values())
    height = 0.85 * np.exp(-0.16 * thresholds)
    fall = np.exp(-minutes / np.array([[one.minutes] for one in kinds]) ** 1.0)
    csi = height[:, None] * fall[:, None, :]
    csi *= 1 + 0.01 * generator.standard_normal(csi.shape)
    bias = np.array([one.bias for one in kinds])[:, None, None] ** (minutes / minutes[-1])
    bias = np.broadcast_to(bias, csi.shape).copy()
    pod = np.clip(csi * (1 + bias) / (1 + csi), 0, 1)
    _banded(scores, "csi", dims, csi, 0.03 + 0.02 * (1 - csi))
    _banded(scores, "frequency_bias", dims, bias, 0.05 * bias)
    scores["pod"], scores["far"] = (dims, pod), (dims, 1 - pod / bias)
    for name, factor in (("hss", 1.15), ("ets", 0.9), ("sedi", 1.1)):
        scores[name] = (dims, np.clip(csi * factor, 0, 1))
    scores["base_rate"] = (dims, np.broadcast_to((0.2 * height)[:, None], csi.shape))
    slower = np.array([one.minutes / kinds[1].minutes - 1 for one in kinds])[:, None, None]
    ahead = np.array([5.0 * one.sees_future for one in kinds])[:, None, None]
    gained = np.broadcast_to(slower * minutes / 2 + ahead, csi.shape)
    scores["minutes_gained"] = (dims, gained)
    pooled = csi.mean(-1)
    _banded(scores, "csi_pooled", dims[:2], pooled, 0.03)
    for name in ("pod", "far", "frequency_bias", "hss", "ets", "sedi"):
        scores[f"{name}_pooled"] = scores[name].mean("lead_time")
    return scores


def _gains(made, thresholds, minutes, generator):
    csi = _events(made, thresholds, minutes, generator)["csi"]
    gain = xr.concat(
        [csi - csi.isel(nowcaster=list(made).index(name)) for name in _references(made)],
        dim="reference",
    )
    gain = gain.where(np.abs(gain) > 0)
    scores, p = xr.Dataset(), np.exp(-np.abs(gain) * 150)
    for name, one in (("csi_gain", gain), ("csi_gain_pooled", gain.mean("lead_time"))):
        _banded(scores, name, one.dims, one.values, 0.015)
    scores["csi_gain_p"], scores["csi_gain_p_holm"] = p, np.minimum(1, 4 * p)
    scores["csi_gain_pooled_p_holm"] = np.minimum(1, 4 * p.mean("lead_time"))
    return scores


def _errors(made, _, minutes, __):
    kinds, dims = list(made.values()), ("nowcaster", "lead_time")
    growth = 1 - np.exp(-minutes / np.array([[one.minutes] for one in kinds]))
    scores = xr.Dataset()
    _banded(scores, "mae", dims, 0.4 * growth, 0.02)
    _banded(scores, "rmse", dims, 1.9 * growth, 0.08)
    bias = np.array([one.bias - 1 for one in kinds])[:, None]
    scores["me"] = (dims, 0.2 * bias * minutes / minutes[-1])
    scores["correlation"] = (dims, 1 - 0.8 * growth)
    scores["balanced_mae"], scores["balanced_mse"] = (dims, 2.1 * growth), (dims, 30 * growth)
    scores["ssim"] = (dims, 1 - 0.5 * growth)
    for name in ("mae", "rmse", "me", "correlation"):
        scores[f"{name}_pooled"] = scores[name].mean("lead_time")
    counted = np.full((len(kinds), len(minutes)), 512 * 4096, np.int64)
    scores["number"] = (dims, counted)
    left = counted * np.array([[one.missing] for one in kinds])
    scores["left_missing"] = (dims, left.astype(np.int64))
    scores["seconds"] = ("nowcaster", [one.seconds for one in kinds])
    scores["sees_future"] = ("nowcaster", [one.sees_future for one in kinds])
    return scores


def _scales(made, thresholds, minutes, _):
    csi = _events(made, thresholds, minutes, np.random.default_rng(1))["csi"].values[:, :, None]
    wide = (np.log2(SCALES) / np.log2(SCALES[-1]))[:, None]
    dims = ("nowcaster", "threshold", "scale", "lead_time")
    fss = 1 - (1 - 2 * csi / (1 + csi)) ** (1 + 1.8 * wide)
    scores = xr.Dataset({"fss": (dims, fss)})
    useful = 0.5 + 0.1 * np.exp(-0.16 * thresholds)
    scores["fss_useful"] = (
        ("nowcaster", "threshold", "lead_time"),
        np.broadcast_to(useful[:, None], csi[:, :, 0].shape),
    )
    scores["intensity_scale_skill"] = (
        ("nowcaster", "threshold", "component_scale", "lead_time"),
        2 * fss - 1.3 + 0.4 * wide,
    )
    return scores


def _spectra(made, _, minutes, __):
    observed = np.broadcast_to(WAVELENGTHS**2.6 / 1e4, (len(minutes), len(WAVELENGTHS)))
    grown = 2.0 + np.array([[one.sharp_km - 2.0] for one in made.values()]) * minutes / minutes[-1]
    lost = 1 / (1 + (grown[:, :, None] / 2.2 / WAVELENGTHS) ** 4)
    power = observed * np.where(grown[:, :, None] > 3.0, lost, 1.0)
    return xr.Dataset(
        {
            "power": (("nowcaster", "lead_time", "wavelength"), power),
            "observed_power": (("lead_time", "wavelength"), observed),
            "effective_resolution": (("nowcaster", "lead_time"), np.maximum(grown, 4.0)),
        }
    )


def _probabilities(made, thresholds, minutes, _):
    kinds = list(made.values())
    ensemble = np.array([one.members > 1 for one in kinds])
    fall = np.exp(-minutes / np.array([[one.minutes] for one in kinds]))
    skill = 0.7 * fall[:, None] * np.exp(-0.1 * thresholds)[:, None] - 0.05
    skill[~ensemble] = np.nan
    dims, scores = ("nowcaster", "threshold", "lead_time"), xr.Dataset()
    _banded(scores, "brier_skill", dims, skill, 0.02)
    for name, values in (("brier", 0.1 - 0.1 * skill), ("roc_area", 0.75 + 0.25 * skill)):
        scores[name] = (dims, values)
    scores["brier_skill_pooled"] = scores["brier_skill"].mean("lead_time")
    scores["roc_area_pooled"] = scores["roc_area"].mean("lead_time")
    _banded(scores, "crps", ("nowcaster", "lead_time"), 0.3 * (1 - fall), 0.01)
    said = (np.arange(10) + 0.5) / 10
    rate = 0.2 * np.exp(-0.16 * thresholds)
    happened = np.clip(rate[:, None] + (said - rate[:, None]) * 0.7, 0, 1)
    by_bin = (*dims[:2], "probability_bin")
    shape = (len(kinds), len(thresholds), 10)
    count = np.broadcast_to(1e6 * np.exp(-9 * said) + 300, shape)
    for name, values in (
        ("forecast_probability", np.broadcast_to(said, shape)),
        ("observed_frequency", np.broadcast_to(happened, shape)),
        ("probability_count", count),
        ("roc_hit_rate", np.broadcast_to((1 - said) ** 0.25, shape)),
        ("roc_false_alarm_rate", np.broadcast_to((1 - said) ** 2, shape)),
    ):
        scores[name] = (by_bin, np.where(ensemble[:, None, None], values, np.nan))
    frequency = scores["observed_frequency"].values
    _banded(scores, "observed_frequency_pooled", by_bin, frequency, 0.02)
    ranks = np.full((len(kinds), 13), np.nan)
    for place, one in enumerate(kinds):
        if one.members > 1:
            steps = np.linspace(-1, 1, one.members + 1)
            ranks[place, : one.members + 1] = 4e4 * (1 + 1.5 * steps**2 + 0.4 * steps)
    scores["rank_count"] = (("nowcaster", "rank"), ranks)
    scores["rank_tied"] = ("nowcaster", np.where(ensemble, 2e4, np.nan))
    spread = np.where(ensemble[:, None], 1.3 * (1 - fall), np.nan)
    scores["spread"] = (("nowcaster", "lead_time"), spread)
    scores["spread_skill"] = (("nowcaster", "lead_time"), spread / (1.9 * (1 - fall)))
    return scores


def _groups(made, thresholds, minutes, generator):
    pooled = _events(made, thresholds, minutes, generator)["csi_pooled"].values
    factor = np.array([1.1, 0.8, 0.9, 1.0, 0.4])
    return xr.Dataset(
        {
            "csi_by_regime": (("nowcaster", "threshold", "regime"), pooled[..., None] * factor),
            "cases_by_regime": ("regime", [210, 130, 260, 252, 7]),
        }
    )
