"""Scores as text: tables for a terminal, and plain types for JSON."""

import json
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.data.labels import LABEL
from nowcast.verification.comparison import BLOCK_SUMS
from nowcast.verification.sequences import OBSERVED

PLAIN_DIMS = {"nowcaster", "threshold", "lead_time", "scale", "bound"}  # of what JSON tells


def plain(scores: xr.Dataset) -> dict[str, Any]:
    """Give scores as JSON types: null where undefined, the protocol beside them."""
    if "lead_time" not in scores.dims:
        return {"protocol": json.loads(scores.attrs["protocol"]), "scores": _plain_labels(scores)}
    rows: list[dict[str, Any]] = []
    for key, score in scores.data_vars.items():
        told = "nowcaster" in score.dims and set(score.dims) <= PLAIN_DIMS
        if not told or str(key).startswith(BLOCK_SUMS):
            continue
        series = score.to_series()
        names = series.index.names
        for place, value in series.items():
            at = place if isinstance(place, tuple) else (place,)
            where = dict(zip(map(str, names), map(_plain_place, at), strict=True))
            if "lead_time" in where:
                where["lead_minutes"] = where.pop("lead_time")
            known = value == value
            plain = (bool(value) if score.dtype.kind == "b" else float(value)) if known else None
            rows.append({**where, "score": str(key), "value": plain})
    return {"protocol": json.loads(scores.attrs["protocol"]), "scores": rows}


def _plain_place(place: Any) -> Any:
    if isinstance(place, pd.Timedelta):
        return int(place / pd.Timedelta(minutes=1))
    return place if isinstance(place, str) else float(place)


def _plain_labels(scores: xr.Dataset) -> list[dict[str, Any]]:
    rows = []
    for key, score in scores.items():
        for place, value in score.to_series().items():
            at = place if isinstance(place, tuple) else (place,)
            where = {str(dim): str(name) for dim, name in zip(score.dims, at, strict=True)}
            known = float(value) if value == value else None
            rows.append({**where, "score": str(key), "value": known})
    return rows


def table(scores: xr.Dataset) -> str:
    """Give the scores as a table: a row per nowcaster, a column per lead time.

    The first line says by which protocol; the last ones what a nowcaster left missing. Scores of
    labels have a row per predictor and a table of what was observed and said.
    """
    if "lead_time" not in scores.dims:
        return _label_table(scores)
    minutes = (scores["lead_time"].values / np.timedelta64(1, "m")).astype(int)
    protocol = json.loads(scores.attrs["protocol"])
    width = max(len(str(name)) for name in scores["nowcaster"].values) + 2
    heading = f"{'':{width}}" + "".join(f"{minute:>6d}" for minute in minutes)
    lines = [
        f"{protocol['cases']} cases, base times {protocol['period']}; "
        f"protocol {scores.attrs['protocol_sha256'][:12]}; columns are lead times in minutes"
    ]
    for label, values in _rows(scores):
        lines += ["", f"{label}", heading]
        for name in values["nowcaster"].values:
            figures = values.sel(nowcaster=name).values
            digits = 3 if label.startswith("Brier") else 2
            cells = "".join(
                f"{figure:6.{digits}f}" if figure == figure else "     -" for figure in figures
            )
            lines.append(f"{name!s:{width}}{cells}")
    return "\n".join([*lines, *_warnings(scores)])


def _warnings(scores: xr.Dataset) -> list[str]:
    lines = []
    left = (scores["left_missing"] / scores["number"]).max("lead_time")
    for name in scores["nowcaster"].values[left.values > 0]:
        share = 100 * left.sel(nowcaster=name).item()
        lines += ["", f"{name} left up to {share:.1f} % missing, counted as no rain"]
    for name in scores["nowcaster"].values[scores["sees_future"].values]:
        lines += ["", f"{name} USED FRAMES AFTER THE BASE TIME: its scores are worth nothing"]
    return lines


def _label_table(scores: xr.Dataset) -> str:
    protocol = json.loads(scores.attrs["protocol"])
    classes = [str(name) for name in scores[LABEL].values]
    names = [str(name) for name in scores["nowcaster"].values]
    wide, cell = max(map(len, [*names, *classes])) + 2, max(map(len, classes)) + 2

    def row(name: str, figures: Any) -> str:
        cells = (
            f"{figure:{cell}.2f}" if figure == figure else f"{'-':>{cell}}" for figure in figures
        )
        return f"{name:{wide}}" + "".join(cells)

    heading = " " * wide + "".join(f"{name:>{cell}}" for name in classes)
    lines = [
        f"{protocol['cases']} cases, base times {protocol['period']}; "
        f"protocol {scores.attrs['protocol_sha256'][:12]}",
        "",
        f"{'':{wide}}{'accuracy':>{cell}}{'Brier':>{cell}}",
        *(
            row(name, scores[["accuracy", "brier"]].sel(nowcaster=name).to_array())
            for name in names
        ),
        "",
        "hit rate",
        heading,
        *(row(name, scores["hit_rate"].sel(nowcaster=name).values) for name in names),
    ]
    for name in names:
        confusion = scores["confusion"].sel(nowcaster=name)
        lines += ["", f"{name}: rows were observed, columns said", heading]
        for one in classes:
            counts = "".join(f"{count:{cell}d}" for count in confusion.sel({OBSERVED: one}).values)
            lines.append(f"{one:{wide}}{counts}")
    for name in names:
        left = int(scores["left_missing"].sel(nowcaster=name))
        if left:
            lines += ["", f"{name} left {left} cases missing, counted as the climatology"]
    return "\n".join(lines)


def _rows(scores: xr.Dataset) -> list[tuple[str, xr.DataArray]]:
    plain = (
        ("MAE", "mae"),
        ("RMSE", "rmse"),
        ("bias", "me"),
        ("CRPS", "crps"),
        ("effective resolution", "effective_resolution"),
    )
    rows = [
        (f"{label} ({scores[score].attrs['units']})", scores[score])
        for label, score in plain
        if score in scores
    ]
    units = scores["rmse"].attrs["units"]
    for threshold in scores["threshold"].values:
        selected = scores.sel(threshold=threshold)
        for label, score in (("CSI", "csi"), ("frequency bias", "frequency_bias"),
                             ("Brier score", "brier")):  # fmt: skip
            if score in scores:
                rows.append((f"{label} at {threshold:g} {units}", selected[score]))
    return rows
