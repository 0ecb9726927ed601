"""What a good score can hide: a look ahead, a bias, blur, gaps. One row per nowcaster."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from nowcast.plots.curves import BIAS_LIMITS
from nowcast.plots.style import at_threshold, lead_values, present
from nowcast.report.standing import figure, names_of, seers

MOST_MISSING = 0.01  # part of the pixels that may be left missing without a remark
BLURRED = 1.5  # times the effective resolution of what it is compared with
EVEN = 0.05  # of the first effective resolution: a change that is not told
SHARP = ("extrapolation", "persistence")  # which moves rain and does not smooth it, or next to it


@dataclass(frozen=True)
class Check:
    """What one check says of one nowcaster.

    Parameters
    ----------
    told
        In words, a line each.
    flagged
        Whether it takes from the worth of the scores.
    short
        Of a flagged one: what is wrong, to name it elsewhere.
    """

    told: tuple[str, ...]
    flagged: bool = False
    short: str = ""


def checks(scores: xr.Dataset) -> dict[str, dict[str, Check]]:
    """Give, by heading, what each check says of each nowcaster; checks without data are left out.

    Examples
    --------
    >>> scores = xr.Dataset({"sees_future": ("nowcaster", [True])}, {"nowcaster": ["oracle"]})
    >>> checks(scores)["Saw the future?"]["oracle"].flagged
    True
    """
    columns = {
        "Saw the future?": _future(scores),
        "Frequency bias": _bias(scores),
        "Effective resolution": _blur(scores),
        "Left missing": _missing(scores),
        "Members": _members(scores),
        "Time per case": _seconds(scores),
    }
    return {heading: column for heading, column in columns.items() if column}


def flagged(scores: xr.Dataset) -> dict[str, list[str]]:
    """Give, for each nowcaster with any, what its flagged checks say."""
    columns = checks(scores).values()
    found = {
        name: [column[name].short for column in columns if column[name].flagged]
        for name in names_of(scores)
    }
    return {name: shorts for name, shorts in found.items() if shorts}


def _future(scores: xr.Dataset) -> dict[str, Check]:
    if "sees_future" not in scores:
        return {}
    saw = Check(("yes: it changes when later frames are taken away",), True, "saw the future")
    return {name: saw if name in seers(scores) else Check(("no",)) for name in names_of(scores)}


def _bias(scores: xr.Dataset) -> dict[str, Check]:
    bias = present(scores, "frequency_bias", "nowcaster", "threshold", "lead_time")
    if bias is None:
        return {}
    return {name: _bias_of(scores, bias.sel(nowcaster=name)) for name in names_of(scores)}


def _bias_of(scores: xr.Dataset, bias: xr.DataArray) -> Check:
    (low, high), lines = BIAS_LIMITS, []
    if not bool(bias.notnull().any()):
        return Check(("not defined",))
    for threshold in bias["threshold"].values:
        values = bias.sel(threshold=threshold).values
        outside = (values < low) | (values > high)
        if outside.any():
            # Farthest by factor; a nowcaster that never says so is farthest of all.
            factors = np.where(outside, abs(np.log(np.maximum(values, 1e-9))), -1.0)
            worst = values[int(factors.argmax())]
            lines.append(
                f"{at_threshold(scores, float(threshold))}: {figure(float(worst))} "
                f"({_leads(bias, outside)})"
            )
    if lines:
        return Check(tuple(lines), True, f"frequency bias outside {low:.2f} to {high:g}")
    known = bias.values[np.isfinite(bias.values)]
    return Check((f"{figure(float(known.min()))} to {figure(float(known.max()))}",))


def _leads(score: xr.DataArray, where: npt.NDArray[np.bool_]) -> str:
    """Say which lead times are meant, the first and the last of each run of them."""
    leads, unit = lead_values(score)
    places = np.flatnonzero(where)
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    told = [
        f"{leads[run[0]]:g}" + (f"\N{EN DASH}{leads[run[-1]]:g}" if len(run) > 1 else "")
        for run in runs
    ]
    return f"at {', '.join(told)} {unit}"


def _blur(scores: xr.Dataset) -> dict[str, Check]:
    resolution = present(scores, "effective_resolution", "nowcaster", "lead_time")
    if resolution is None:
        return {}
    against, limit = _sharp(scores, resolution)
    return {
        name: _blur_of(resolution.sel(nowcaster=name), "" if name == against else against, limit)
        for name in names_of(scores)
    }


def _sharp(scores: xr.Dataset, resolution: xr.DataArray) -> tuple[str, npt.NDArray[np.float64]]:
    """Give what effective resolution is held against, and its kilometres by lead time.

    Extrapolation loses hardly any power; without it persistence, which loses none; else the
    shortest wavelength that was observed.
    """
    for name in SHARP:
        if name in names_of(scores) and bool(resolution.sel(nowcaster=name).notnull().any()):
            return name, np.asarray(resolution.sel(nowcaster=name).values, np.float64)
    shortest = float(scores["wavelength"].min()) if "wavelength" in scores.coords else np.nan
    return "what was observed", np.full(resolution.sizes["lead_time"], shortest)


def _blur_of(resolution: xr.DataArray, against: str, limit: npt.NDArray[np.float64]) -> Check:
    leads, unit = lead_values(resolution)
    values = np.asarray(resolution.values, np.float64)
    known = np.flatnonzero(np.isfinite(values))
    if not known.size:
        return Check(("not defined",))
    first, last = known[0], known[-1]
    told = f"{values[first]:.3g} km"
    if np.ptp(values[known]) > EVEN * values[first]:
        told += f" at {leads[first]:g} {unit}, {values[last]:.3g} km at {leads[last]:g} {unit}"
    blurred = values > BLURRED * limit
    if not against or not blurred.any():
        return Check((told,))
    at = int(np.where(blurred, values / limit, 0.0).argmax())
    worst = f"blurred {_leads(resolution, blurred)}: {values[at] / limit[at]:.1f} times {against}"
    return Check((told, worst), True, f"blurred ({values[at]:.3g} km at {leads[at]:g} {unit})")


def _missing(scores: xr.Dataset) -> dict[str, Check]:
    if not {"left_missing", "number"} <= set(scores):
        return {}
    left, number = (
        scores[name].sum([dim for dim in scores[name].dims if dim != "nowcaster"])
        for name in ("left_missing", "number")
    )
    share = left / number.where(number > 0)
    found = {}
    for name in names_of(scores):
        part = (share.sel(nowcaster=name) if "nowcaster" in share.dims else share).item()
        if not part > 0:
            found[name] = Check(("none",))
            continue
        percent = f"{100 * part:.2g} %"
        many = part >= MOST_MISSING
        found[name] = Check((percent,), many, f"left {percent} missing" if many else "")
    return found


def _members(scores: xr.Dataset) -> dict[str, Check]:
    ranks = present(scores, "rank_count", "nowcaster", "rank")
    if ranks is None:
        return {}
    held = ranks.notnull().any([dim for dim in ranks.dims if dim not in ("nowcaster", "rank")])
    counts = held.sum("rank") - 1
    return {
        name: Check((f"{count:d}" if count > 0 else "1",))
        for name, count in zip(names_of(scores), counts.values.tolist(), strict=True)
    }


def _seconds(scores: xr.Dataset) -> dict[str, Check]:
    if "seconds" not in scores:
        return {}
    values = scores["seconds"].values.tolist()
    return {
        name: Check((_duration(one),)) for name, one in zip(names_of(scores), values, strict=True)
    }


def _duration(seconds: float) -> str:
    if not np.isfinite(seconds):
        return "not known"
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.1f} s"
