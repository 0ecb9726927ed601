"""Tables of a report: scores by lead time and pooled, checks, protocol, definitions."""

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import xarray as xr

from nowcast.plots.style import at_threshold, lead_values, present, spell_units, thresholds
from nowcast.report.checks import checks
from nowcast.report.page import Content, cited, element, table
from nowcast.report.standing import (
    figure,
    honest,
    how_pooled,
    names_of,
    pooled,
    protocol,
    protocol_rows,
    seers,
)

SHOWN_MINUTES = (5, 15, 30, 45, 60)  # lead times of a table, where they exist
MOST_LEADS = 6
# Scores by which one nowcaster may be called best. Not those that a forecast of too much rain, or
# of too little, improves: POD, FAR, SEDI, the area of a ROC curve and the bias itself are told and
# not ranked.
EVENT_SCORES = {
    "csi": ("CSI", "most"),
    "pod": ("POD", ""),
    "far": ("FAR", ""),
    "frequency_bias": ("bias", ""),
    "hss": ("HSS", "most"),
    "ets": ("ETS", "most"),
    "sedi": ("SEDI", ""),
    "brier_skill": ("Brier skill", "most"),
    "roc_area": ("ROC area", ""),
}
FIELD_SCORES = {
    "mae": ("MAE", "least"),
    "rmse": ("RMSE", "least"),
    "me": ("ME", ""),
    "correlation": ("correlation", "most"),
    "crps": ("CRPS", "least"),
    "balanced_mae": ("bal. MAE", "least"),
    "balanced_mse": ("bal. MSE", "least"),
    "ssim": ("SSIM", "most"),
    "effective_resolution": ("resolution", ""),
    "spread_skill": ("spread ÷ error", ""),
}
SEEN = " (saw the future)"
DERIVED = ("_band", "_pooled", "_by_regime")
UNDEFINED = ("case_", "block_", "cases_by_")  # prefixes of what is no score


def check_table(scores: xr.Dataset) -> Element:
    """Give the checks, a row per nowcaster; what is flagged has a colour and a sign."""
    columns = checks(scores)
    rows = [
        (_name(scores, name), [_check_cell(column[name]) for column in columns.values()])
        for name in names_of(scores)
    ]
    made = table("Checks, nowcaster by nowcaster", ["", *columns], rows)
    made.set("class", "scroll words")
    return made


def _check_cell(check: Any) -> Element:
    lines = [element("div", line) for line in check.told]
    if not check.flagged:
        return element("td", *lines)
    lines[0].text = f"\N{WARNING SIGN}\N{VARIATION SELECTOR-15} {lines[0].text}"
    return element("td", *lines, class_="flag")


def csi_tables(scores: xr.Dataset) -> list[Element]:
    """Give the CSI of each nowcaster by lead time, a table per threshold."""
    csi = present(scores, "csi", "nowcaster", "threshold", "lead_time")
    if csi is None:
        return []
    return [_csi_table(scores, csi, value) for value in thresholds(csi)]


def _csi_table(scores: xr.Dataset, csi: xr.DataArray, threshold: float) -> Element:
    at, (leads, unit) = {"threshold": threshold}, lead_values(csi)
    places = _shown_leads(csi)
    columns = [csi.sel(at).isel(lead_time=place) for place in places]
    band = scores.get("csi_band")
    bands = [None if band is None else band.sel(at).isel(lead_time=place) for place in places]
    header: list[Content] = ["", *(f"{leads[place]:g} {unit}" for place in places)]
    over_all = pooled(scores, "csi")
    if over_all is not None:
        over_band = scores.get("csi_pooled_band")
        columns.append(over_all.sel(at))
        bands.append(None if over_band is None else over_band.sel(at))
        header.append("pooled" if "csi_pooled" in scores else "mean")
    best = [_best(column, honest(scores), "most") for column in columns]
    rows = [
        (
            _name(scores, name),
            [
                _cell(column.sel(nowcaster=name).item(), name == first, _band(band, name))
                for column, band, first in zip(columns, bands, best, strict=True)
            ],
        )
        for name in names_of(scores)
    ]
    return table(f"CSI by lead time, {at_threshold(scores, threshold)}", header, rows)


def _shown_leads(score: xr.DataArray) -> list[int]:
    """Give the places of the lead times of a table: the usual minutes, or some evenly spaced."""
    minutes = score["lead_time"].values / np.timedelta64(1, "m")
    usual = [place for place, one in enumerate(minutes) if one in SHOWN_MINUTES]
    if len(usual) >= 3:
        return usual
    return sorted({round(x) for x in np.linspace(0, len(minutes) - 1, MOST_LEADS)})


def pooled_tables(scores: xr.Dataset) -> list[Element]:
    """Give scores over all lead times: a table per threshold, and one of those without."""
    made = []
    for value in scores["threshold"].values if "threshold" in scores.coords else ():
        caption = f"Scores {how_pooled(scores)}, {at_threshold(scores, float(value))}"
        made.append(_pooled_table(scores, EVENT_SCORES, caption, {"threshold": value}))
    made.append(_pooled_table(scores, FIELD_SCORES, f"Scores of fields {how_pooled(scores)}", {}))
    return [one for one in made if one is not None]


def _pooled_table(
    scores: xr.Dataset, kinds: dict[str, tuple[str, str]], caption: str, at: dict[str, Any]
) -> Element | None:
    columns = []
    header: list[Content] = []
    for name, (words, better) in kinds.items():
        score = pooled(scores, name)
        if score is None or set(score.dims) != {"nowcaster", *at}:
            continue
        if not bool(score.sel(at).notnull().any()):
            continue
        band = scores.get(f"{name}_pooled_band")
        columns.append((score.sel(at), None if band is None else band.sel(at), better))
        units = spell_units(str(scores[name].attrs.get("units", ""))) if name in scores else ""
        unit = element("small", units) if units not in ("", "1") else None
        header.append(element("span", words, unit))
    if not columns:
        return None
    best = [_best(score, honest(scores), better) for score, _, better in columns]
    rows = [
        (
            _name(scores, name),
            [
                _cell(score.sel(nowcaster=name).item(), name == first, _band(band, name))
                for (score, band, _), first in zip(columns, best, strict=True)
            ],
        )
        for name in names_of(scores)
    ]
    return table(caption, ["", *header], rows)


def _best(score: xr.DataArray, names: Sequence[str], better: str) -> str:
    known = score.sel(nowcaster=list(names)).dropna("nowcaster")
    if not better or known.sizes["nowcaster"] < 2:
        return ""
    return str((known if better == "most" else -known).idxmax("nowcaster").item())


def _band(band: xr.DataArray | None, name: str) -> str:
    if band is None:
        return ""
    low, high = (band.sel(nowcaster=name, bound=bound).item() for bound in ("low", "high"))
    if not np.isfinite(low + high):
        return ""
    return (
        f"{figure(low)}\N{EN DASH}{figure(high)}"
        if low >= 0
        else f"{figure(low)} to {figure(high)}"
    )


def _cell(value: float, best: bool, band: str) -> Element:
    return element(
        "td",
        figure(value),
        element("small", band) if band else None,
        **({"class_": "best"} if best else {}),
    )


def _name(scores: xr.Dataset, name: str) -> Content:
    return f"{name}{SEEN}" if name in seers(scores) else name


def protocol_table(scores: xr.Dataset) -> Element:
    """Give the protocol field by field, its hash, and the code that scored."""
    rows = list(protocol_rows(protocol(scores)))
    for attribute, words in (
        ("protocol_sha256", "hash of all of these (SHA-256)"),
        ("code_version", "code, not in the hash"),
        ("resampled", "resampled for the bands, not in the hash"),
    ):
        if attribute in scores.attrs:
            rows.append((words, str(scores.attrs[attribute])))
    cells = [(name, [element("td", value)]) for name, value in rows]
    made = table("Protocol", ["field", "value"], cells)
    made.set("class", "scroll words protocol")
    return made


def definitions(scores: xr.Dataset) -> Element:
    """Give what each score is, its units and where it is from."""
    parts = []
    for name in sorted(str(one) for one in scores.data_vars):
        attributes = scores[name].attrs
        if "long_name" not in attributes or name.endswith(DERIVED) or name.startswith(UNDEFINED):
            continue
        units = spell_units(str(attributes.get("units", "1")))
        told = attributes["long_name"] + (f", in {units}" if units != "1" else "")
        source = str(attributes.get("references", ""))
        parts.append(element("dt", name))
        parts.append(
            element("dd", told, "; " if source else None, cited(source) if source else None)
        )
    return element("dl", *parts)
