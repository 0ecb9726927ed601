"""What an experiment's settings mean in observations, nowcasters and cases: used by every verb."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.config import PERIODIC, Config, ConfigError
from nowcast.conventions import check_observations
from nowcast.data.labels import LABEL
from nowcast.frames import Block, step_of
from nowcast.nowcasters import Nowcaster
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.predictors import SequencePredictor
from nowcast.serving import EndpointNowcaster
from nowcast.tracking import Tracking, open_any, open_nowcaster
from nowcast.training import blocks_of
from nowcast.verification import case_times, verify
from nowcast.verification.sequences import (
    OBSERVED,
    check_classes,
    labelled_times,
    verify_classes,
    verify_series,
)

SYNTHETIC = "synthetic"

Comparable = Nowcaster | SequencePredictor


def observations(config: Config, path: str | list[str] = "", *, source: str = "") -> xr.Dataset:
    """Open the observations that the settings name, or those at a path, on the settings' grid.

    Parameters
    ----------
    config
        Of the experiment.
    path
        Instead of ``data.observations``: an archive, a NetCDF/Zarr path or raw radar files.
    source
        Instead of ``data.source``.
    """
    from nowcast.data.grids import coarsen
    from nowcast.data.observations import open_observations

    where = path or config.data.observations
    if where == SYNTHETIC:
        made = check_observations(synthetic(config), config.variable.variable)
        return coarsen(_filtered(config, made), config.data.coarsen)
    observed = open_observations(
        where, source=source or config.data.source, variable=config.variable.variable
    )
    return coarsen(_filtered(config, observed), config.data.coarsen)


def _filtered(config: Config, observed: xr.Dataset) -> xr.Dataset:
    """Apply the filters that the settings name, on the grid that the frames came on."""
    from nowcast.data.quality import mask_clutter, mask_speckle, open_clutter_map, without

    section = config.data
    if section.leave_out:
        observed = without(observed, section.leave_out)
    if section.clutter_map:
        observed = mask_clutter(observed, open_clutter_map(section.clutter_map))
    return mask_speckle(observed) if section.speckle_filter else observed


def synthetic(config: Config) -> xr.Dataset:
    """Give the synthetic observations that the settings ask for; for a head of classes, labelled.

    The labels are the regimes of the rain, known from its making; see
    `nowcast.data.synthetic.regimes`.
    """
    from nowcast.data.labels import with_labels
    from nowcast.data.synthetic import REGIMES, regimes, synthesise

    settings = {"step_minutes": config.window.step_minutes, **config.synthetic.model_dump()}
    observed = synthesise(**settings)
    if config.network.head != "classes":
        return observed
    return with_labels(observed, regimes(**settings), REGIMES)


def nowcasters(config: Config, uris: list[str], tracking: Tracking) -> dict[str, Nowcaster]:
    """Open nowcasters for a comparison: the settings' baselines first, then the named ones.

    Those without weights use the frames and the step of the settings.
    """
    names = dict.fromkeys([*config.baselines, *uris])
    return {name: open_nowcaster(name, tracking, **_given(config, name))[0] for name in names}


def comparables(config: Config, uris: list[str], tracking: Tracking) -> dict[str, Comparable]:
    """Open what a verification compares: the settings' baselines first, then the named ones.

    Predictors of a series are compared with nowcasters, those of labels with none.
    """
    named = {uri: open_any(uri, tracking, **_given(config, uri))[0] for uri in uris}
    if _predictors(named, "classes"):
        return named
    return {**nowcasters(config, [], tracking), **named}


def _predictors(compared: Mapping[str, Comparable], *heads: str) -> dict[str, SequencePredictor]:
    return {
        name: one
        for name, one in compared.items()
        if isinstance(one, SequencePredictor) and one.settings.head.kind in heads
    }


def _given(config: Config, name: str) -> dict[str, Any]:
    """Give the settings of a nowcaster without weights; none for any other."""
    window = config.window
    settings: dict[str, dict[str, Any]] = {
        "persistence": {"step": window.step},
        "extrapolation": {"step": window.step, "input_frames": min(window.input_frames, 3)},
    }
    return settings.get(name, cycle_of(config, name))


def cycle_of(config: Config, name: str) -> dict[str, Any]:
    """Give the settings of the periodic nowcaster: the variable's cycle; none for any other.

    Raises
    ------
    ConfigError
        If the variable has no cycle.
    """
    if name != PERIODIC:
        return {}
    if not config.variable.period_hours:
        raise ConfigError(f"{name!r} needs the cycle; set variable.period_hours, such as 24")
    return {"period": config.variable.period, "step": config.window.step}


def compare(
    config: Config,
    compared: Mapping[str, Comparable],
    observed: xr.Dataset,
    *,
    block: Block | None,
    lead_times: pd.TimedeltaIndex | None = None,
    thresholds: tuple[float, ...] = (),
    progress: Any = None,
) -> xr.Dataset:
    """Verify nowcasters, or predictors of series or labels, by the settings' protocol.

    Parameters
    ----------
    config
        Of the experiment.
    compared
        By name; see `comparables`.
    observed
        Where the cases come from.
    block
        In which they lie; None takes all there are.
    lead_times, thresholds
        Instead of those of the settings.
    progress
        Called with (done, all) after each batch.
    """
    section, every = config.verification, pd.Timedelta(minutes=config.verification.every_minutes)
    if _predictors(compared, "classes"):
        return _compare_labels(config, compared, observed, block=block, progress=progress)
    leads = config.window.lead_times if lead_times is None else lead_times
    cases = case_times(observed, nowcasters=compared, lead_times=leads, every=every, block=block)
    score = verify_series if _predictors(compared, "series") else verify
    return score(
        compared,  # type: ignore[arg-type]  # of frames: without a predictor, all are nowcasters
        observed,
        base_times=cases,
        lead_times=leads,
        thresholds=thresholds or section.thresholds,
        baselines=config.baselines,
        batch_cases=section.batch_cases,
        progress=(lambda done: progress(done, len(cases))) if progress else None,
    )


def _compare_labels(
    config: Config,
    compared: Mapping[str, Comparable],
    observed: xr.Dataset,
    *,
    block: Block | None,
    progress: Any,
) -> xr.Dataset:
    predictors = _predictors(compared, "classes")
    others = [name for name in compared if name not in predictors]
    if others:
        raise ConfigError(
            f"{', '.join(others)} tell no labels; verify {', '.join(predictors)} without them"
        )
    check_classes(observed, predictors)
    observed = observed.assign_coords({LABEL: observed[LABEL].compute()})  # once, for all that read
    section = config.verification
    every = pd.Timedelta(minutes=section.every_minutes)
    cases = labelled_times(observed, predictors=predictors, every=every, block=block)
    return verify_classes(
        predictors,
        observed,
        base_times=cases,
        batch_cases=section.batch_cases,
        progress=(lambda done: progress(done, len(cases))) if progress else None,
    )


def block(
    config: Config, observed: xr.Dataset, *, period: str = "", split: str = ""
) -> Block | None:
    """Give the block of time that a period or the name of a split asks for; None for all times.

    Raises
    ------
    ValueError
        If both are given, or the split is unknown.
    """
    if period and split:
        raise ConfigError("give a period or a split, not both")
    if period:
        return Block.parse(period)
    if not split:
        return None
    blocks = blocks_of(config, observed)
    if split not in blocks:
        raise ConfigError(f"unknown split {split!r}; known are {', '.join(blocks)}")
    return blocks[split]


def opened(
    config: Config,
    uri: str,
    tracking: Tracking,
    *,
    endpoint: str = "",
) -> tuple[Nowcaster, dict[str, str]]:
    """Open one nowcaster to issue with, and say what it is.

    Parameters
    ----------
    config
        Of the experiment: it knows the variable's cycle.
    uri
        Name, folder or model of the registry.
    tracking
        Where the registry is.
    endpoint
        Address that serves it, if it shall compute there.
    """
    nowcaster, provenance = open_nowcaster(uri, tracking, **cycle_of(config, uri))
    if not endpoint:
        return nowcaster, provenance
    if not isinstance(nowcaster, NeuralNowcaster):
        raise ConfigError(f"{uri!r} is computed here, not behind an endpoint; leave --endpoint out")
    remote = EndpointNowcaster(nowcaster.settings, endpoint.rstrip("/"))
    return remote, {**provenance, "endpoint": endpoint}


def times(observed: xr.Dataset, texts: list[str]) -> pd.DatetimeIndex:
    """Give base times from ISO texts; the time of the last frame if there are none.

    Raises
    ------
    ValueError
        If a text is no time, or there are no frames.
    """
    if not texts:
        if not observed.sizes["time"]:
            raise ValueError("the observations hold no frames, so there is no base time")
        return observed["time"].to_index()[-1:]
    try:
        parsed = [pd.Timestamp(text) for text in texts]
    except ValueError as error:
        raise ConfigError(f"a base time is an ISO time in UTC: {error}") from error
    naive = [time.tz_convert(None) if time.tz else time for time in parsed]
    return pd.DatetimeIndex(sorted(set(naive)))


def lead_times_of(config: Config, nowcaster: Nowcaster, observed: xr.Dataset) -> pd.TimedeltaIndex:
    """Give every lead time of a network, or the settings' number of the observations' steps."""
    if isinstance(nowcaster, NeuralNowcaster | EndpointNowcaster):
        window = nowcaster.settings.window
        frames, step = window.lead_frames, window.step
    else:
        frames, step = config.window.lead_frames, step_of(observed)
    return pd.TimedeltaIndex([step * lead for lead in range(1, frames + 1)])


def plain(scores: xr.Dataset) -> dict[str, Any]:
    """Give scores as JSON types: null where undefined, the protocol beside them."""
    if "lead_time" not in scores.dims:
        return {"protocol": json.loads(scores.attrs["protocol"]), "scores": _plain_labels(scores)}
    rows = []
    for name in scores["nowcaster"].values:
        for lead_time in scores["lead_time"].values:
            one = scores.sel(nowcaster=name, lead_time=lead_time)
            minutes = int(lead_time / np.timedelta64(1, "m"))
            for key, score in one.items():
                values = dict(score.to_series()) if score.ndim else {"": score.item()}
                rows += [
                    {
                        "nowcaster": str(name),
                        "lead_minutes": minutes,
                        "score": str(key),
                        **({"threshold": float(at)} if at != "" else {}),
                        "value": float(value) if value == value else None,
                    }
                    for at, value in values.items()
                ]
    return {"protocol": json.loads(scores.attrs["protocol"]), "scores": rows}


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
            cells = "".join(
                f"{figure:6.2f}" if figure == figure else "     -" for figure in figures
            )
            lines.append(f"{name!s:{width}}{cells}")
    left = (scores["left_missing"] / scores["number"]).max("lead_time")
    for name in scores["nowcaster"].values[left.values > 0]:
        share = 100 * left.sel(nowcaster=name).item()
        lines += ["", f"{name} left up to {share:.1f} % missing, counted as no rain"]
    return "\n".join(lines)


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
    units = scores["rmse"].attrs["units"]
    rows = [
        (f"{label} ({units})", scores[score])
        for label, score in (("MAE", "mae"), ("RMSE", "rmse"), ("bias", "me"))
    ]
    for threshold in scores["threshold"].values:
        selected = scores.sel(threshold=threshold)
        rows.append((f"CSI at {threshold:g} {units}", selected["csi"]))
        rows.append((f"frequency bias at {threshold:g} {units}", selected["frequency_bias"]))
    return rows
