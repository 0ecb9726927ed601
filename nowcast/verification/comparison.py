"""Scores of nowcasters on identical cases: the same base times, lead times and pixels."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import VARIABLES, Variable, grid_id, grid_spacing, known_variable
from nowcast.durable import replacing
from nowcast.frames import step_of
from nowcast.nowcasters import BASELINES, Nowcaster
from nowcast.verification.batches import FIELD_DIMS, OF_VARIABLE, Batch, Measure
from nowcast.verification.bootstrap import bands, paired
from nowcast.verification.cases import UsesFrames, batches_of_cases
from nowcast.verification.events import blocks_of_cases
from nowcast.verification.probabilities import CRPS, Exceedance, blocks_in_bins
from nowcast.verification.protocol import Protocol
from nowcast.verification.regimes import describe, regimes_of
from nowcast.verification.scores import Errors, Events
from nowcast.verification.sealing import Issue, sees_future
from nowcast.verification.totals import Groups, Told, Totals
from nowcast.verification.views import Fields, View

BANDED = ("csi", "pod", "far", "frequency_bias", "hss", "ets", "sedi", "mae", "rmse", "me",
          "correlation", "fss", "brier", "observed_frequency", "crps")  # fmt: skip
OF_OBSERVATIONS = ("observed_power", "fss_useful", "base_rate", "brier_uncertainty")
PIXELS_AT_ONCE = 4_000_000  # of one nowcaster's forecasts that a measure is given together
SIMILARITY_RANGES = {"rain_rate": 100.0, "reflectivity": 70.0}  # of values; what maps show
OF_ENSEMBLES = ("ranks",)  # measures for as many members as the largest ensemble compared has
BLOCK_SUMS = "block_"  # prefix of the sums by block, from which a test between files is made


def verify(
    nowcasters: Mapping[str, Nowcaster],
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    lead_times: pd.TimedeltaIndex,
    thresholds: tuple[float, ...],
    baselines: Sequence[str] = BASELINES,
    references: Sequence[str] = (),
    measures: Sequence[Measure] | None = None,
    view: View | None = None,
    split: str = "all",
    selection: str = "all",
    described: xr.Dataset | None = None,
    batch_cases: int = 8,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Score nowcasters on identical cases: the same base times, lead times and pixels.

    Parameters
    ----------
    nowcasters
        By name; the baselines must be among them, since their reach is part of what is counted.
    observed
        Observations that hold the valid times; one that is absent counts as missing.
    base_times, lead_times, thresholds
        The cases; thresholds in the units of the variable, and none for no categorical scores. A
        base time of which an input frame has no observed pixel is left out for every nowcaster.
    baselines
        Names of those whose reach decides which pixels count.
    references
        Names of more nowcasters that the others are tested against, beside the baselines.
    measures
        Families of scores; by default all of `standard_measures`.
    view
        What of the fields is scored; by default the fields themselves.
    split, selection
        How the cases were chosen, for the protocol.
    described
        As `nowcast.verification.regimes.describe` gave it of these base times, and maybe more.
    batch_cases
        Cases in memory at a time.
    progress
        Called with the number of cases done after each batch.

    Returns
    -------
    Dataset
        Scores by ``(nowcaster, threshold, lead_time)``, with bands (``_band``), pooled over lead
        times (``_pooled``), by regime over all lead times (``_by_regime``) and by case
        (``case_``); the sums by block of cases (``block_``). ``left_missing`` counts the pixels
        that a nowcaster left missing where it was scored; ``sees_future`` tells who used frames
        after a base time. The protocol stands in the attributes.

    Raises
    ------
    ValueError
        If a baseline is absent or there is no case.
    """
    absent = [name for name in (*baselines, *references) if name not in nowcasters]
    if absent or not baselines or not len(base_times):
        raise ValueError(
            f"a verification needs a case or more ({len(base_times)} given) and one or more "
            f"baselines: {', '.join((*baselines, *references))} (absent: "
            f"{', '.join(absent) or 'none'})"
        )
    looked = view or Fields()
    variable = known_variable(observed)
    chosen = measures
    if chosen is None:
        members = max((getattr(one, "members", 0) for one in nowcasters.values()), default=0)
        chosen = standard_measures(observed, thresholds, view=looked, members=members)
    flat = [measure.name for measure in chosen if measure.gridded and not looked.gridded]
    if flat:
        raise ValueError(
            f"{', '.join(flat)} need neighbouring pixels, and {looked.name} have none; leave them "
            "out of the measures"
        )

    def issue(one: Nowcaster, loaded: xr.Dataset, seen: pd.DatetimeIndex) -> xr.Dataset:
        return looked.nowcast(one.nowcast(loaded, base_times=seen, lead_times=lead_times))

    def protocol(used: pd.DatetimeIndex) -> Protocol:
        return Protocol(
            **observed_part(observed, used),
            units=looked.units(variable),
            split=split,
            selection=selection,
            lead_minutes=tuple(lead_times.total_seconds() / 60),
            thresholds=tuple(thresholds),
            baselines={name: frames_of(nowcasters[name], step_of(observed)) for name in baselines},
            missing_rule=missing_rule(variable, baselines),
            view=looked.name,
            measures=parameters_of(chosen),
        )

    return scored(
        nowcasters,
        observed,
        issue=issue,
        view=looked,
        base_times=base_times,
        lead_times=lead_times,
        thresholds=thresholds,
        baselines=baselines,
        references=references,
        measures=chosen,
        protocol=protocol,
        described=described,
        batch_cases=batch_cases,
        progress=progress,
    )


def standard_measures(
    observed: xr.Dataset,
    thresholds: tuple[float, ...],
    *,
    view: View,
    members: int = 0,
    basic: bool = False,
) -> list[Measure]:
    """Give the families of scores that fit observations and a view of them.

    Parameters
    ----------
    observed
        Its variable, grid and spacing.
    thresholds
        In the units of the variable.
    view
        Of places no neighbourhood is scored.
    members
        Of the largest ensemble compared.
    basic
        Whether events and errors are enough.
    """
    variable = known_variable(observed).name
    events = Events(tuple(thresholds))
    if basic:
        return [events, Errors(variable)]
    from nowcast.verification.ensembles import Ranks
    from nowcast.verification.neighbourhoods import IntensityScale, Neighbourhoods, scales_of
    from nowcast.verification.similarity import Similarity
    from nowcast.verification.spectra import Spectra

    chosen: list[Measure] = [events, Errors(variable), CRPS()]
    if thresholds:
        chosen.append(Exceedance(tuple(thresholds)))
    if members > 1:
        chosen.append(Ranks(members))
    kilometres = spacing_km(observed)
    if view.gridded and kilometres and variable in VARIABLES:
        grid = (observed.sizes["y"], observed.sizes["x"])
        scales = scales_of(kilometres, grid)
        chosen += [
            Neighbourhoods(tuple(thresholds), scales, kilometres),
            IntensityScale(tuple(thresholds), kilometres),
            Spectra(kilometres),
            Similarity(SIMILARITY_RANGES[variable]),
        ]
    return chosen


def scored(
    compared: Mapping[str, UsesFrames],
    observed: xr.Dataset,
    *,
    issue: Issue,
    view: View,
    base_times: pd.DatetimeIndex,
    lead_times: pd.TimedeltaIndex,
    thresholds: tuple[float, ...],
    baselines: Sequence[str],
    references: Sequence[str] = (),
    measures: Sequence[Measure],
    protocol: Callable[[pd.DatetimeIndex], Protocol],
    described: xr.Dataset | None = None,
    batch_cases: int,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Score whatever gives nowcasts; see `verify`, which this does the work of.

    Parameters
    ----------
    compared
        By name.
    issue
        Gives what one of them says of base times, as the view shows it, from the frames around.
    protocol
        Made when the base times that were used are known.
    observed, view, base_times, lead_times, thresholds, baselines, references, measures, \
described, batch_cases, progress
        See `verify`.
    """
    variable = known_variable(observed)
    if described is None:
        described = describe(
            observed,
            base_times,
            lead_times=lead_times,
            thresholds=thresholds,
            batch_cases=batch_cases,
        )
    blocks = blocks_of_cases(described, base_times)
    groups = Groups(base_times, blocks, regimes_of(described))
    batches = batches_of_cases(
        compared,
        observed,
        base_times=base_times,
        until=lead_times[-1],
        batch_cases=batch_cases,
        progress=progress,
    )
    told = Told(list(compared), middle(thresholds))
    parts = _issued(compared, batches, issue, view, lead_times, told, variable, baselines)
    by_measure = _summed(list(compared), parts, measures, groups, told)
    used = told.base_times
    held = groups.with_cases(used)
    scores = _as_scores(
        list(zip(measures, by_measure, strict=True)),
        blocks=held,
        regimes=groups.regimes,
        against=tuple(dict.fromkeys((*baselines, *references))),
    )
    beside = [told.dataset(described), _regimes(groups, used)]
    scores = xr.merge([scores, *beside], compat="override", join="outer")
    scores["sees_future"] = (
        "nowcaster",
        [sees_future(issue, one, observed, used, lead_times[-1]) for one in compared.values()],
    )
    if "csi" in scores and "extrapolation" in compared:
        scores["minutes_gained"] = minutes_gained(scores["csi"], over="extrapolation")
    resampled = blocks.resampled
    if len(held) < len(blocks.labels):
        resampled = f"{len(held)} of {resampled}"
    return _with_units(scores, view.units(variable)).assign_attrs(
        {
            "title": "verification of nowcasts",
            **protocol(used).attributes,
            "references": "\n".join(dict.fromkeys((*baselines, *references))),
            "resampled": resampled,
        }
    )


def _issued(
    compared: Mapping[str, UsesFrames],
    batches: Iterator[tuple[xr.Dataset, pd.DatetimeIndex]],
    issue: Issue,
    view: View,
    lead_times: pd.TimedeltaIndex,
    told: Told,
    variable: Variable,
    baselines: Sequence[str],
) -> Iterator[dict[str, Batch]]:
    """Give what everyone says of a few cases after the other, beside what was observed."""
    for loaded, seen in batches:
        said = {}
        for name, one in compared.items():
            started = time.perf_counter()
            said[name] = issue(one, loaded, seen)
            told.seconds[name] += time.perf_counter() - started
        truth = view.observed(_truth(loaded[variable.name], seen, lead_times))
        yield from _parts(said, truth, variable, baselines)


def _summed(
    names: list[str],
    parts: Iterator[dict[str, Batch]],
    measures: Sequence[Measure],
    groups: Groups,
    told: Told,
) -> list[xr.Dataset]:
    """Give the sums of each measure by ``(nowcaster, group)``, a nowcaster in each thread."""
    totals = {name: [Totals(len(groups.names)) for _ in measures] for name in names}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for part in parts:
            places = groups.of(part[names[0]].forecast["base_time"].to_index())

            def sums(name: str, part: dict[str, Batch] = part) -> list[xr.Dataset]:
                return [measure.sums(part[name]) for measure in measures]

            for name, made in zip(names, threads.map(sums, names), strict=True):
                for total, one_sums in zip(totals[name], made, strict=True):
                    total.add(one_sums, places)
                told.add(name, part[name], dict(zip(measures, made, strict=True)))
    return [
        xr.concat(
            [totals[name][place].dataset(groups) for name in names],
            dim=xr.Variable("nowcaster", names),
            coords="minimal",
            compat="override",
            join="exact",
        )
        for place in range(len(measures))
    ]


def middle(thresholds: Sequence[float]) -> float | None:
    """Give the main threshold, by which single cases are judged: the middle one, or below it."""
    return sorted(thresholds)[(len(thresholds) - 1) // 2] if thresholds else None


def save_scores(scores: xr.Dataset, path: Path) -> Path:
    """Write scores as netCDF, whole or not at all."""
    with replacing(path) as temporary:
        scores.to_netcdf(temporary, engine="netcdf4")
    return path


def minutes_gained(csi: xr.DataArray, *, over: str) -> xr.DataArray:
    """Give how much longer a nowcaster keeps a CSI than another: the lead time gained, in minutes.

    The other's curve starts from 1 at the base time and is made to fall; where it does not fall as
    low as the nowcaster's score, or that is not defined, the gain is NaN. Over itself it is 0.

    Parameters
    ----------
    csi
        Dims ``(nowcaster, threshold, lead_time)``.
    over
        Name of the other.

    Examples
    --------
    >>> leads = pd.to_timedelta([5, 10], unit="min")
    >>> coordinates = {"nowcaster": ["a", "b"], "threshold": [1.0], "lead_time": leads}
    >>> values = [[[0.8, 0.6]], [[1.0, 0.8]]]
    >>> csi = xr.DataArray(values, coordinates, ("nowcaster", "threshold", "lead_time"))
    >>> minutes_gained(csi, over="a").sel(nowcaster="b").values
    array([[5., 5.]])
    """
    ordered = csi.transpose("nowcaster", "threshold", "lead_time")
    minutes = ordered["lead_time"].values / np.timedelta64(1, "m")
    gained = np.full(ordered.shape, np.nan)
    for at in range(ordered.sizes["threshold"]):
        curve = ordered.sel(nowcaster=over).isel(threshold=at).values
        if not np.isfinite(curve).all():
            continue
        falling = np.minimum.accumulate([1.0, *curve])
        reached = np.array([0.0, *minutes])
        for place in range(ordered.sizes["nowcaster"]):
            score = ordered.isel(nowcaster=place, threshold=at).values
            as_good = np.interp(-score, -falling, reached)
            gained[place, at] = np.where(score >= falling[-1], minutes - as_good, np.nan)
        itself = list(ordered["nowcaster"].values).index(over)
        gained[itself, at] = 0.0
    return ordered.copy(data=gained)


def missing_rule(variable: Variable, baselines: Sequence[str]) -> str:
    """Give which pixels count, in words; only of rain can missing be taken for none."""
    left = (
        "what a nowcaster leaves missing there counts as no rain"
        if variable.name in VARIABLES
        else "a nowcaster that leaves one of them missing is refused"
    )
    reached = " and ".join(baselines)
    return f"counted: pixels observed at the valid time and reached by {reached}; {left}"


def frames_of(nowcaster: UsesFrames, step: pd.Timedelta) -> dict[str, float]:
    """Give which frames a nowcaster uses, as the protocol tells it."""
    minutes = (nowcaster.step or step) / pd.Timedelta(minutes=1)
    return {"input_frames": nowcaster.input_frames, "step_minutes": minutes}


def observed_part(observed: xr.Dataset, used: pd.DatetimeIndex) -> dict[str, Any]:
    """Give what a protocol says of the observations and the cases."""
    from nowcast.data.observations import fingerprint

    return {
        "data_fingerprint": fingerprint(observed),
        "grid_id": grid_id(observed),
        "variable": known_variable(observed).name,
        "period": f"{used[0].isoformat()}/{used[-1].isoformat()}",
        "cases": len(used),
        "base_times_sha256": hashlib.sha256(str(list(used)).encode()).hexdigest(),
    }


def parameters_of(measures: Sequence[Measure]) -> dict[str, dict[str, Any]]:
    """Give the parameters of measures, less those that depend on who is compared."""
    return {
        measure.name: asdict(measure)  # type: ignore[call-overload]
        for measure in measures
        if measure.name not in OF_ENSEMBLES
    }


def spacing_km(observed: xr.Dataset) -> float:
    """Give the size of a pixel in kilometres; of a grid in degrees, along the meridian."""
    spacing = grid_spacing(observed)
    if str(observed["x"].attrs.get("units", "")).startswith("degree"):
        return float(abs(np.diff(observed["y"].values.astype(float)).mean())) * 111.2
    return spacing * {"km": 1.0}.get(str(observed["x"].attrs.get("units", "m")), 1e-3)


def _truth(
    observed: xr.DataArray, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
) -> xr.DataArray:
    """Give what was observed at the valid times; a frame that is absent is missing."""
    valid = xr.DataArray(
        base_times.values[:, None] + lead_times.values,
        dims=("base_time", "lead_time"),
        coords={"base_time": base_times, "lead_time": lead_times},
    )
    return observed.reindex(time=np.unique(valid)).sel(time=valid).drop_vars("time")


def _parts(
    said: Mapping[str, xr.Dataset],
    truth: xr.DataArray,
    variable: Variable,
    baselines: Sequence[str],
) -> Iterator[dict[str, Batch]]:
    """Give the batches of every nowcaster, so few cases at a time that they stay in the cache."""
    truth = truth.transpose(*FIELD_DIMS)
    cases = max(1, PIXELS_AT_ONCE // max(truth.isel(base_time=0).size, 1))
    for first in range(0, truth.sizes["base_time"], cases):
        some = {"base_time": slice(first, first + cases)}
        seen = truth.isel(some)
        values = {name: _single(one[variable.name].isel(some)) for name, one in said.items()}
        counted = seen.notnull().values
        for baseline in baselines:
            counted = counted & values[baseline].notnull().values
        observed = seen.where(counted)
        once: dict[str, Any] = {}
        part = {}
        for name, value in values.items():
            left = counted & value.isnull().values
            if variable.name not in VARIABLES and left.any():
                raise ValueError(
                    f"{name} leaves {int(left.sum())} pixels missing where it is scored; only for "
                    "rain does missing count as none; issue on the whole of what the baselines "
                    "reach"
                )
            forecast = observed.copy(data=np.where(left, 0.0, value.where(counted).values))
            part[name] = Batch(
                forecast=forecast,
                observed=observed,
                nowcast=said[name].isel(some),
                left=observed.copy(data=left),
                once=once,
            )
        yield part


def _single(field: xr.DataArray) -> xr.DataArray:
    """Give one value per pixel: of an ensemble the mean of the members that reach it."""
    mean = field.mean("member") if "member" in field.dims else field
    return mean.transpose(*FIELD_DIMS)


def _as_scores(
    parts: list[tuple[Measure, xr.Dataset]],
    *,
    blocks: list[str],
    regimes: list[str],
    against: tuple[str, ...],
) -> xr.Dataset:
    """Give the scores of all measures, with their bands and tests, from their sums by group."""
    made = []
    for measure, by_group in parts:
        by_block = by_group.sel(group=blocks).rename(group="block")
        total = by_block.sum("block")
        scores = measure.scores(total)
        made.append(scores)
        own = [str(name) for name in scores.data_vars if name not in total]
        pooled = measure.scores(total.sum("lead_time"))
        made.append(pooled[own].rename({name: f"{name}_pooled" for name in own}))
        banded = [name for name in BANDED if name in own]
        if banded:
            made.append(bands(by_block, measure.scores, banded))
            over_leads = bands(by_block.sum("lead_time"), measure.scores, banded)
            renamed = {f"{name}_band": f"{name}_pooled_band" for name in banded}
            made.append(over_leads.rename(renamed))
        if isinstance(measure, Exceedance):
            made.append(blocks_in_bins(by_block))
        if isinstance(measure, Events | Errors):
            name = "csi" if isinstance(measure, Events) else "rmse"
            in_regimes = by_group.sel(group=regimes).rename(group="regime").sum("lead_time")
            of_regimes = measure.scores(in_regimes)
            made.append(of_regimes[[name]].rename({name: f"{name}_by_regime"}))
            sums = by_block.transpose("nowcaster", "block", ...)
            made.append(sums.rename({name: f"{BLOCK_SUMS}{name}" for name in sums.data_vars}))
        if isinstance(measure, Events) and measure.thresholds:
            made.append(gains(by_block, measure, against))
    scores = xr.merge(made, compat="override", join="outer")
    for name in OF_OBSERVATIONS:
        for one in (name, f"{name}_pooled"):
            if one in scores and "nowcaster" in scores[one].dims:
                scores[one] = scores[one].isel(nowcaster=0, drop=True)
    return scores


def gains(by_block: xr.Dataset, events: Events, against: Sequence[str]) -> xr.Dataset:
    """Give by how much the CSI of each nowcaster exceeds that of others, and how surely.

    Parameters
    ----------
    by_block
        Counts of events by ``block`` and ``nowcaster``.
    events
        The measure they are of.
    against
        Names of the others.

    Returns
    -------
    Dataset
        ``csi_gain`` and what goes with it, see `nowcast.verification.bootstrap.paired`; over all
        lead times ``csi_gain_pooled``: few tests, of which Holm's correction leaves more.
    """
    csi = partial(events.scores, names=("csi",))
    by_lead_time = paired(by_block, csi, "csi", against)
    pooled = paired(by_block.sum("lead_time"), csi, "csi", against)
    names = {name: str(name).replace("csi_gain", "csi_gain_pooled") for name in pooled}
    return by_lead_time.merge(pooled.rename(names), compat="override", join="outer")


def _regimes(groups: Groups, used: pd.DatetimeIndex) -> xr.Dataset:
    member = groups.member.sel(base_time=used)
    return xr.Dataset({"case_in_regime": member, "cases_by_regime": member.sum("base_time")})


def _with_units(scores: xr.Dataset, units: str) -> xr.Dataset:
    """Name the units of what is scored, and give bands and pooled scores those of the score."""
    for name, score in scores.data_vars.items():
        about = score.attrs or scores.get(_score_of(str(name)), score).attrs
        if about:
            told = about["units"].replace(OF_VARIABLE, units) if "units" in about else "1"
            score.attrs = {**about, "units": told}
    if "threshold" in scores.coords:
        scores["threshold"].attrs = {"units": units}
    return scores


def _score_of(name: str) -> str:
    """Give the score of which something is a band, a mean or a part.

    Examples
    --------
    >>> _score_of("rmse_pooled_band"), _score_of("csi_by_regime"), _score_of("crps")
    ('rmse', 'csi', 'crps')
    """
    for ending in ("_band", "_pooled", "_by_regime"):
        name = name.removesuffix(ending)
    return name
