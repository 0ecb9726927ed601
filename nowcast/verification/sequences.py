"""Scores of predictors of series and labels, on identical cases, beside baselines.

A series is scored beside the baselines' nowcasts reduced to the same area or points. Labels are
scored beside the frequencies of the classes in the training block, of which the greatest names the
most frequent class. Persistence of the label is no baseline: the label of a frame is known from
its future alone, so at the base time the last one that could be known lies before all input
frames.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import Variable, known_variable
from nowcast.data.labels import LABEL, UNKNOWN, classes_of, labels_of
from nowcast.data.series import names_of, series_of
from nowcast.frames import Block, Window, base_times, step_of
from nowcast.nowcasters import BASELINES, Nowcaster
from nowcast.predictors import FREQUENCIES, PROBABILITY, SequencePredictor
from nowcast.verification.cases import batches_of_cases, spaced
from nowcast.verification.comparison import (
    frames_of,
    missing_rule,
    observed_part,
    parameters_of,
    scored,
    standard_measures,
)
from nowcast.verification.protocol import Protocol

SEQUENCE_VERSION = 2  # raised by hand whenever a score here would come out otherwise
CLIMATOLOGY = "climatology"  # name of the baseline of labels
OBSERVED = f"observed_{LABEL}"
CLASS_DEFINITIONS = {
    "accuracy": ("part of the cases whose most probable class was right", ""),
    "hit_rate": ("part of the cases of a class in which it was the most probable", ""),
    "brier": (
        "Brier score, squared errors of the probabilities summed over classes",
        "doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2",
    ),
}


@dataclass(frozen=True)
class SequenceProtocol(Protocol):
    """What scores of series or labels depend on besides the predictor.

    Parameters
    ----------
    head
        ``series`` or ``classes``.
    labels
        The points of the series, or the classes.
    sequence_version
        Of the code here; `scoring_version` is of what it shares with the scores of frames.
    """

    head: str = ""
    labels: tuple[str, ...] = ()
    sequence_version: int = SEQUENCE_VERSION


def verify_series(
    compared: Mapping[str, Nowcaster | SequencePredictor],
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    lead_times: pd.TimedeltaIndex,
    thresholds: tuple[float, ...] = (),
    baselines: Sequence[str] = BASELINES,
    split: str = "all",
    selection: str = "all",
    described: xr.Dataset | None = None,
    batch_cases: int = 8,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Score series on identical cases: the same base times, lead times and points.

    Parameters
    ----------
    compared
        By name: predictors of one series, and nowcasters, whose fields are reduced to it.
    observed, base_times, lead_times, thresholds, baselines, split, selection, described, \
batch_cases, progress
        See `nowcast.verification.verify`; a threshold is one of the areal mean, or at a point.

    Returns
    -------
    Dataset
        Scores by ``(nowcaster, threshold, lead_time)`` as of nowcasts, pooled over points.

    Raises
    ------
    ValueError
        If a baseline is absent, there is no case, or the predictors are of different series.
    """
    points = _points_of(compared)
    absent = [name for name in baselines if name not in compared]
    if absent or not baselines:
        raise ValueError(
            f"a series is scored beside one or more baselines: {', '.join(baselines)} "
            f"(absent: {', '.join(absent) or 'none'})"
        )
    variable, step, view = known_variable(observed), step_of(observed), _Series(points)
    measures = standard_measures(observed, thresholds, view=view, basic=True)

    def issue(
        one: Nowcaster | SequencePredictor, loaded: xr.Dataset, seen: pd.DatetimeIndex
    ) -> xr.Dataset:
        if isinstance(one, SequencePredictor):
            series = _at(one.predict(loaded, base_times=seen)[variable.name], lead_times)
            return _as_row(series).to_dataset(name=variable.name)
        return view.nowcast(one.nowcast(loaded, base_times=seen, lead_times=lead_times))

    def protocol(used: pd.DatetimeIndex) -> SequenceProtocol:
        return SequenceProtocol(
            **observed_part(observed, used),
            units=variable.units,
            split=split,
            selection=selection,
            head="series",
            labels=names_of(points),
            lead_minutes=tuple(lead_times.total_seconds() / 60),
            thresholds=tuple(thresholds),
            baselines={name: frames_of(compared[name], step) for name in baselines},
            missing_rule=f"{missing_rule(variable, baselines)}; an areal mean is observed or "
            "reached where half of its pixels are",
            view=view.name,
            measures=parameters_of(measures),
        )

    scores = scored(
        compared,
        observed,
        issue=issue,
        view=view,
        base_times=base_times,
        lead_times=lead_times,
        thresholds=thresholds,
        baselines=baselines,
        measures=measures,
        protocol=protocol,
        described=described,
        batch_cases=batch_cases,
        progress=progress,
    )
    return scores.assign_attrs(title="verification of series")


@dataclass(frozen=True)
class _Series:
    """Fields as the series that predictors give: their areal mean, or their values at points."""

    points: tuple[tuple[float, float], ...]
    name = "series"
    gridded = False

    def units(self, variable: Variable) -> str:
        return variable.units

    def nowcast(self, nowcast: xr.Dataset) -> xr.Dataset:
        variable = known_variable(nowcast).name
        return _as_row(series_of(nowcast[variable], self.points)).to_dataset(name=variable)

    def observed(self, fields: xr.DataArray) -> xr.DataArray:
        return _as_row(series_of(fields, self.points))


def labelled_times(
    observed: xr.Dataset,
    *,
    predictors: Mapping[str, SequencePredictor],
    every: pd.Timedelta,
    block: Block | None = None,
) -> pd.DatetimeIndex:
    """Give the base times that have a label, and at which every predictor has its frames.

    Parameters
    ----------
    observed
        With labels, which are computed.
    predictors
        Those compared.
    every
        Least time between two cases.
    block
        In which all frames must lie.

    Raises
    ------
    ValueError
        If there is none.
    """
    check_classes(observed, predictors)
    common = observed["time"].to_index()[labels_of(observed) != UNKNOWN]
    for one in predictors.values():
        window = Window(one.input_frames, 0, one.step or step_of(observed))
        common = common.intersection(base_times(observed, window, block))
    if not len(common):
        where = f" in {block}" if block else ""
        raise ValueError(f"no base time{where} has a label and all input frames; give other times")
    return spaced(common, every)


def check_classes(observed: xr.Dataset, predictors: Mapping[str, SequencePredictor]) -> None:
    """Refuse predictors of other classes than the observations are labelled with.

    Raises
    ------
    ValueError
        Naming the predictor and both sets of classes.
    """
    classes = classes_of(observed)
    for name, one in predictors.items():
        if one.settings.head.labels != classes:
            held = ", ".join(classes) if classes else "no labels"
            raise ValueError(
                f"{name} tells {', '.join(one.settings.head.labels)}; the observations have "
                f"{held}; give observations with its labels, as the coordinate "
                f"'{LABEL}(time)' with flag_values and flag_meanings, or the settings of its "
                "training"
            )


def verify_classes(
    predictors: Mapping[str, SequencePredictor],
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    split: str = "all",
    batch_cases: int = 8,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Score predictors of labels on identical cases, beside the frequencies in their training.

    What a predictor leaves missing counts as these frequencies, and is told.

    Parameters
    ----------
    predictors
        By name; the frequencies are those of the first one's training block.
    observed
        With the labels of the same classes.
    base_times
        See `labelled_times`.
    split, batch_cases, progress
        See `nowcast.verification.verify`.

    Returns
    -------
    Dataset
        ``accuracy``, ``brier`` by ``(nowcaster)``, ``hit_rate`` by ``(nowcaster, observed_label)``
        and the counts they came from: ``confusion(nowcaster, observed_label, label)``,
        ``number``, ``left_missing``. NaN where a class was never observed.

    Raises
    ------
    ValueError
        If the classes differ, or there is no case.
    """
    check_classes(observed, predictors)
    classes = classes_of(observed)
    first = next(iter(predictors.values()))
    shares = json.loads(first.settings.provenance[FREQUENCIES])
    climatology = xr.DataArray(
        [float(shares[name]) for name in classes], dims=LABEL, coords={LABEL: list(classes)}
    )

    def sums_of(near: xr.Dataset, seen: pd.DatetimeIndex) -> dict[str, xr.Dataset]:
        right = labels_of(near.sel(time=seen))
        constant = climatology.expand_dims(base_time=seen)
        said = {name: one.predict(near, base_times=seen) for name, one in predictors.items()}
        parts = {CLIMATOLOGY: constant, **{name: one[PROBABILITY] for name, one in said.items()}}
        return {name: _class_sums(part, constant, right) for name, part in parts.items()}

    totals: dict[str, xr.Dataset] = {}
    used: list[pd.Timestamp] = []
    for loaded, seen in batches_of_cases(
        predictors,
        observed,
        base_times=base_times,
        until=pd.Timedelta(0),
        batch_cases=batch_cases,
        progress=progress,
    ):
        used += list(seen)
        for name, part in sums_of(loaded, seen).items():
            totals[name] = totals[name] + part if name in totals else part
    variable = known_variable(observed)
    protocol = SequenceProtocol(
        **observed_part(observed, pd.DatetimeIndex(used)),
        units=variable.units,
        split=split,
        selection="all",
        head="classes",
        labels=classes,
        lead_minutes=(),
        thresholds=(),
        baselines={CLIMATOLOGY: shares},
        missing_rule="counted: base times with a label and an observed pixel in every input frame; "
        "what a predictor leaves missing counts as the climatology",
        view="labels",
    )
    return _class_scores(totals, protocol)


def _points_of(
    compared: Mapping[str, Nowcaster | SequencePredictor],
) -> tuple[tuple[float, float], ...]:
    """Give the points of which all predictors give the series; none for an areal mean."""
    series = {
        name: one.settings for name, one in compared.items() if isinstance(one, SequencePredictor)
    }
    told = {
        name: ", ".join(one.head.labels) if one.head.kind == "series" else one.head.kind
        for name, one in series.items()
    }
    if len(set(told.values())) != 1 or "classes" in told.values():
        listed = "; ".join(f"{name} gives {what}" for name, what in told.items())
        raise ValueError(
            f"only predictors of one and the same series compare; {listed or 'none is given'}; "
            "verify them one by one"
        )
    return next(iter(series.values())).points


def _at(series: xr.DataArray, lead_times: pd.TimedeltaIndex) -> xr.DataArray:
    known = series["lead_time"].to_index()
    absent = lead_times[~lead_times.isin(known)]
    if len(absent):
        raise ValueError(
            f"the predictor gives lead times from {known[0]} to {known[-1]}; {absent[0]} was asked "
            "for; give shorter ones"
        )
    return series.sel(lead_time=lead_times)


def _as_row(series: xr.DataArray) -> xr.DataArray:
    """Give a series as fields of one row, as which it is scored."""
    plain = series.drop_vars(["y", "x", "point"], errors="ignore")
    return plain.rename(point="x").expand_dims("y", axis=-2)


def _class_sums(probability: xr.DataArray, instead: xr.DataArray, right: np.ndarray) -> xr.Dataset:
    """Give what adds up over cases: counts of observed and most probable class, squared errors."""
    missing = probability.isnull().any(LABEL)
    values = probability.where(~missing, instead).transpose("base_time", LABEL).values
    happened = np.eye(values.shape[1])[right]
    confusion = np.zeros((values.shape[1],) * 2, np.int64)
    np.add.at(confusion, (right, values.argmax(axis=1)), 1)
    return xr.Dataset(
        {
            "confusion": ((OBSERVED, LABEL), confusion),
            "squared_error": ((), ((values - happened) ** 2).sum()),
            "number": ((), len(right)),
            "left_missing": ((), int(missing.sum())),
        },
        coords={OBSERVED: probability[LABEL].values, LABEL: probability[LABEL].values},
    )


def _class_scores(totals: dict[str, xr.Dataset], protocol: SequenceProtocol) -> xr.Dataset:
    names = pd.Index(list(totals), name="nowcaster")
    total = xr.concat(list(totals.values()), dim=names)
    observed = total["confusion"].sum(LABEL)
    hits = xr.concat(
        [
            total["confusion"].sel({OBSERVED: name, LABEL: name}, drop=True)
            for name in total[LABEL].values
        ],
        dim=total[OBSERVED],
    )
    scores = {
        "accuracy": hits.sum(OBSERVED) / total["number"],
        "hit_rate": hits / observed.where(observed > 0),
        "brier": total["squared_error"] / total["number"],
    }
    for name, (long_name, reference) in CLASS_DEFINITIONS.items():
        scores[name].attrs = {"long_name": long_name, "units": "1", "references": reference}
    counts = total[["confusion", "number", "left_missing"]]
    attributes = {"title": "verification of labels", **protocol.attributes}
    return counts.assign(scores).assign_attrs(attributes)
