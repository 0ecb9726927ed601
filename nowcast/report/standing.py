"""Who is best, by how much, and whether that can be told: the words at the head of a report.

Nothing is claimed that was not tested: a nowcaster is called better only where the paired
bootstrap says so after Holm's correction and the band of the gain lies on one side of zero.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from nowcast.plots.curves import SIGNIFICANT
from nowcast.plots.style import at_threshold, present

BASELINES = ("persistence", "extrapolation")  # the better of them is what has to be beaten
EVENTS = ("nowcaster", "threshold")


def protocol(scores: xr.Dataset) -> dict[str, Any]:
    """Give the protocol of scores; empty if they have none."""
    record: dict[str, Any] = json.loads(str(scores.attrs.get("protocol", "{}")))
    return record


def protocol_rows(record: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Give the fields of a protocol as pairs of texts; those of a field come with its name.

    Examples
    --------
    >>> list(protocol_rows({"cases": 3, "measures": {"fss": {"scales": [1, 2]}}}))
    [('cases', '3'), ('measures.fss.scales', '1, 2')]
    """
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from protocol_rows(value, f"{within}{name}.")
        elif isinstance(value, list):
            yield f"{within}{name}", ", ".join(str(one) for one in value)
        else:
            yield f"{within}{name}", str(value)


def names_of(scores: xr.Dataset) -> list[str]:
    """Name all nowcasters, in their order."""
    return [str(name) for name in scores["nowcaster"].values]


def seers(scores: xr.Dataset) -> list[str]:
    """Name those that used frames after the base time."""
    if "sees_future" not in scores:
        return []
    seen = scores["sees_future"].values.astype(bool)
    return [name for name, saw in zip(names_of(scores), seen, strict=True) if saw]


def honest(scores: xr.Dataset) -> list[str]:
    """Name those that are ranked: all but those that saw the future."""
    return [name for name in names_of(scores) if name not in seers(scores)]


def baselines(scores: xr.Dataset) -> list[str]:
    """Name the baselines that have to be beaten: those of the protocol."""
    compared = honest(scores)
    return [name for name in protocol(scores).get("baselines", BASELINES) if name in compared]


def pooled(scores: xr.Dataset, name: str) -> xr.DataArray | None:
    """Give a score over all lead times together; where it is absent, its mean over them."""
    if f"{name}_pooled" in scores:
        return scores[f"{name}_pooled"]
    if name not in scores or "lead_time" not in scores[name].dims:
        return scores.get(name)
    return scores[name].mean("lead_time")


def how_pooled(scores: xr.Dataset) -> str:
    """Say what pooling is: counts added over lead times, or a mean where those are not there."""
    return "over all lead times" if "csi_pooled" in scores else "on average over lead times"


@dataclass(frozen=True)
class Standing:
    """Who is best at one threshold, and what is known of the lead over the better baseline.

    Parameters
    ----------
    threshold
        In the units of the variable.
    best, baseline
        Names: of the highest pooled CSI of all, and of the highest among the baselines; empty if
        there is none.
    rival
        Name: the highest of those that are no baseline, and if that is the best, it.
    outcome
        ``better``, ``worse``, ``untold`` (tested, and not to be told apart), ``mixed`` (at some
        lead times) or ``untested``: the rival against the baseline.
    evidence
        The gain and the test, in words.
    scope
        Words that limit the outcome; empty where it is of all lead times together.
    """

    threshold: float
    best: str
    baseline: str
    rival: str
    outcome: str
    evidence: str
    scope: str = ""


def standings(scores: xr.Dataset) -> list[Standing]:
    """Give who is best at each threshold at which any CSI is defined."""
    csi = pooled(scores, "csi")
    if csi is None or not set(EVENTS) <= set(csi.dims):
        return []
    return [
        _standing(scores, csi.sel(threshold=value), float(value))
        for value in csi["threshold"].values
        if bool(csi.sel(threshold=value, nowcaster=honest(scores)).notnull().any())
    ]


def _standing(scores: xr.Dataset, csi: xr.DataArray, threshold: float) -> Standing:
    named = baselines(scores)
    others = [name for name in honest(scores) if name not in named]
    best = _highest(csi, honest(scores))
    baseline, rival = _highest(csi, named), _highest(csi, others)
    outcome, evidence = "untested", ""
    if baseline and rival:
        outcome, evidence = _tested(scores, rival, baseline, threshold)
    scope = "" if "csi_gain_pooled" in scores else " at most lead times"
    return Standing(threshold, best, baseline, rival, outcome, evidence, scope)


def _highest(score: xr.DataArray, names: Sequence[str]) -> str:
    known = score.sel(nowcaster=list(names)).dropna("nowcaster")
    return str(known.idxmax("nowcaster").item()) if known.size else ""


def _tested(scores: xr.Dataset, name: str, reference: str, threshold: float) -> tuple[str, str]:
    """Give what the paired test of two says, over all lead times or else by lead time."""
    where = {"nowcaster": name, "reference": reference, "threshold": threshold}
    over_all = _selected(scores, "csi_gain_pooled", where)
    if over_all is not None:
        p = _selected(scores, "csi_gain_pooled_p_holm", where)
        return _pooled_test(over_all, _selected(scores, "csi_gain_pooled_band", where), p)
    by_lead = _selected(scores, "csi_gain_p_holm", where)
    if by_lead is None:
        return "untested", "no paired test was made"
    return _tests_by_lead(
        _selected(scores, "csi_gain", where), _selected(scores, "csi_gain_band", where), by_lead
    )


def _selected(scores: xr.Dataset, name: str, where: dict[str, Any]) -> xr.DataArray | None:
    found = present(scores, name, *where)
    if found is None or where["reference"] not in found["reference"].values:
        return None
    selected = found.sel(where)
    return selected if bool(selected.notnull().any()) else None


def _pooled_test(
    gain: xr.DataArray, band: xr.DataArray | None, p: xr.DataArray | None
) -> tuple[str, str]:
    told = f"{signed(gain.item())}"
    if band is None or p is None:
        return "untested", f"{told}; no paired test was made"
    low, high = (band.sel(bound=bound).item() for bound in ("low", "high"))
    told += f", band {signed(low)} to {signed(high)}, p = {p_value(p.item())} after Holm"
    if p.item() >= SIGNIFICANT or low <= 0.0 <= high:
        return "untold", told
    return ("better" if gain.item() > 0 else "worse"), told


def _tests_by_lead(
    gain: xr.DataArray | None, band: xr.DataArray | None, p: xr.DataArray
) -> tuple[str, str]:
    if gain is None or band is None:
        return "untested", "no paired test was made"
    low, high = (band.sel(bound=bound).values for bound in ("low", "high"))
    sure = (p.values < SIGNIFICANT) & ((low > 0) | (high < 0))
    up, down = int((sure & (gain.values > 0)).sum()), int((sure & (gain.values < 0)).sum())
    count, middle = int(np.isfinite(p.values).sum()), float(gain.mean())
    told = (
        f"{signed(middle)} on average over lead times; by lead time, after Holm, better at {up}, "
        f"worse at {down} and not told apart at {count - up - down} of {count}"
    )
    if up and down:
        return "mixed", told
    if up > count / 2:
        return "better", told
    if down > count / 2:
        return "worse", told
    return ("mixed" if up or down else "untold"), told


def headline(scores: xr.Dataset, found: Sequence[Standing]) -> str:
    """Say in a sentence or two how it stands over all thresholds."""
    rivals = [one for one in found if one.rival and one.baseline]
    if not found:
        return _lowest_error(scores)
    if not rivals:
        leaders = " and ".join(dict.fromkeys(one.best for one in found))
        return f"Highest CSI: {leaders}. There is nothing to compare with a baseline."
    better = [one for one in rivals if one.outcome == "better"]
    if not better:
        return (
            "No nowcaster is shown to beat the better of "
            f"{' and '.join(baselines(scores))} in CSI at any threshold."
        )
    told = []
    for name in dict.fromkeys(one.rival for one in better):
        levels = ", ".join(
            at_threshold(scores, one.threshold) for one in better if one.rival == name
        )
        told.append(f"{name} beats {_beaten(scores)} in CSI at {levels}{better[0].scope}")
    rest = len(rivals) - len(better)
    where = "one other threshold" if rest == 1 else f"{rest} other thresholds"
    end = f"; at {where} none is shown to" if rest else ""
    return "; ".join(told) + end + "."


def _lowest_error(scores: xr.Dataset) -> str:
    """Say who has the lowest RMSE, where no events were scored; which nothing tests."""
    rmse = pooled(scores, "rmse")
    names = honest(scores) if rmse is not None else []
    known = {name: float(rmse.sel(nowcaster=name)) for name in names}  # type: ignore[union-attr]
    known = {name: value for name, value in known.items() if np.isfinite(value)}
    if not known:
        return "No events were scored, so nobody can be called best by CSI."
    best = min(known, key=lambda name: known[name])
    told = f"{best} has the lowest RMSE over all lead times, {figure(known[best])}"
    others = [name for name in baselines(scores) if name in known and name != best]
    if others:
        nearest = min(others, key=lambda name: known[name])
        told += f"; the better baseline, {nearest}, has {figure(known[nearest])}"
    return f"{told}. No events were scored, and errors are not tested."


def _beaten(scores: xr.Dataset) -> str:
    named = baselines(scores)
    return f"the better of {' and '.join(named)}" if len(named) > 1 else named[0]


def conclusion(one: Standing) -> str:
    """Say what is shown at one threshold, and no more than that."""
    if not one.rival or not one.baseline:
        return f"{one.best} has the highest CSI"
    return {
        "better": f"{one.rival} is significantly better than {one.baseline}{one.scope}",
        "worse": f"no nowcaster reaches {one.baseline}; {one.rival}, the next, is significantly "
        f"worse{one.scope}",
        "untold": f"{one.best} has the highest CSI, but these cases do not tell {_pair(one)} apart",
        "mixed": f"{one.best} has the highest CSI; {_pair(one)} differ at some lead times only",
        "untested": f"{one.best} has the highest CSI; whether {_pair(one)} differ by more than "
        "chance is not tested",
    }[one.outcome]


def _pair(one: Standing) -> str:
    return f"{one.rival} and {one.baseline}"


def evidence(scores: xr.Dataset, one: Standing) -> str:
    """Give the figures behind a conclusion: scores, bands, test."""
    if not one.rival or not one.baseline:
        return f"CSI {_with_band(scores, one.best, one.threshold)}"
    first, last = (_with_band(scores, name, one.threshold) for name in (one.rival, one.baseline))
    return (
        f"CSI {first} for {one.rival}, {last} for {one.baseline}, the better baseline; "
        f"difference {one.evidence}"
    )


def besides(scores: xr.Dataset, one: Standing) -> list[str]:
    """Say how the best of those that are no baseline stands to the other references.

    Smoothed extrapolation among them: who does not beat it may owe all else to blur.
    """
    if not one.rival or "reference" not in scores.coords:
        return []
    told = {
        "better": f"significantly better{one.scope}",
        "worse": f"significantly worse{one.scope}",
        "untold": "not told apart",
        "mixed": "different at some lead times only",
    }
    lines = []
    for reference in scores["reference"].values.tolist():
        if reference in (one.rival, *baselines(scores)):
            continue
        outcome, _ = _tested(scores, one.rival, reference, one.threshold)
        if outcome in told:
            lines.append(f"beside {reference}: {told[outcome]}")
    return lines


def close(scores: xr.Dataset, one: Standing) -> list[str]:
    """Name those whose CSI lies within the band of the best, and that no test was made with."""
    csi, band = pooled(scores, "csi"), scores.get("csi_pooled_band")
    if csi is None or band is None:
        return []
    low = band.sel(nowcaster=one.best, threshold=one.threshold, bound="low").item()
    tested = scores["reference"].values.tolist() if "reference" in scores.coords else []
    apart = {one.best, one.baseline, one.rival, *tested}
    others = [name for name in honest(scores) if name not in apart]
    at = csi.sel(threshold=one.threshold)
    return [name for name in others if at.sel(nowcaster=name).item() >= low]


def _with_band(scores: xr.Dataset, name: str, threshold: float) -> str:
    where = {"nowcaster": name, "threshold": threshold}
    csi, band = pooled(scores, "csi"), scores.get("csi_pooled_band")
    told = figure(csi.sel(where).item()) if csi is not None else ""
    if band is None or not bool(band.sel(where).notnull().all()):
        return told
    low, high = (figure(band.sel(where).sel(bound=bound).item()) for bound in ("low", "high"))
    return f"{told} (band {low} to {high})"


def figure(value: float) -> str:
    """Give a score with two decimals, a small one with three; a dash where it is not defined.

    Examples
    --------
    >>> figure(0.456), figure(0.0456), figure(12.345), figure(float("nan"))
    ('0.46', '0.046', '12.3', '–')
    """
    if not np.isfinite(value):
        return "\N{EN DASH}"
    digits = next(
        (one for limit, one in ((0.0995, 3), (9.995, 2), (99.95, 1)) if abs(value) < limit), 0
    )
    text = f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """Give a difference with its sign."""
    return f"+{figure(value)}" if value > 0 else figure(value)


def p_value(value: float) -> str:
    """Give a p-value with no more digits than it has.

    Examples
    --------
    >>> p_value(0.04), p_value(0.0001), p_value(1.0)
    ('0.040', '< 0.001', '1')
    """
    if value < 0.001:
        return "< 0.001"
    return "1" if value >= 0.9995 else f"{value:.3f}"
