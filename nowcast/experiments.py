"""What an experiment's settings mean in observations, nowcasters and cases: used by every verb."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast import nowcasters as known
from nowcast.config import PERIODIC, Config, ConfigError, VerificationSection, validate
from nowcast.conventions import VARIABLES, check_observations, known_variable
from nowcast.data.labels import LABEL
from nowcast.decisions import Decisions, Summary
from nowcast.frames import Block, step_of
from nowcast.nowcasters import Nowcaster
from nowcast.nowcasters.derived import Derived, WithSummary
from nowcast.nowcasters.members import Draw, WithMembers
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.predictors import SequencePredictor
from nowcast.serving import EndpointNowcaster
from nowcast.tracking import Tracking, open_any, open_nowcaster
from nowcast.training import blocks_of, window_of
from nowcast.turns import Views
from nowcast.verification import case_times, standard_measures, verify
from nowcast.verification.cases import batches_of_cases, near
from nowcast.verification.comparison import middle
from nowcast.verification.events import selected
from nowcast.verification.regimes import describe, worst_cases
from nowcast.verification.sequences import (
    check_classes,
    labelled_times,
    verify_classes,
    verify_series,
)
from nowcast.verification.views import Fields, View

SYNTHETIC = "synthetic"
STEPS, SMOOTHED = "steps", "smoothed"  # references of a verification
MATCHED_CASES = 16  # on which a smoothed extrapolation is made as smooth as a network
MOST_VALUES = 250_000_000  # of all fields of a batch together, 1 GB; a single case may have more
_LOG = logging.getLogger(__name__)

Comparable = Nowcaster | SequencePredictor


def observations(config: Config, path: str | Sequence[str] = "", *, source: str = "") -> xr.Dataset:
    """Open the observations that the settings name, or those at a path, on the settings' grid.

    Of several sources, each is filtered and coarsened on the grid that it came on; if they lie on
    different grids, these are put on one canvas, `nowcast.data.grids.on_one_canvas`.

    Parameters
    ----------
    config
        Of the experiment.
    path
        Instead of ``data.observations``: an archive, a NetCDF/Zarr path or raw radar files, or
        several of these.
    source
        Instead of ``data.source``.
    """
    from nowcast.data.grids import on_one_canvas
    from nowcast.data.observations import open_by_grid, open_observations

    where = path or config.data.observations
    if not isinstance(where, str) and len(where) == 1:
        where = where[0]
    if where == SYNTHETIC:
        made = check_observations(synthetic(config), config.variable.variable)
        return _as_settings_say(config, made)
    source, variable = source or config.data.source, config.variable.variable
    if isinstance(where, str):
        observed = open_observations(where, source=source, variable=variable)
        return _as_settings_say(config, observed)
    opened = open_by_grid(where, source=source, variable=variable)
    parts = [_as_settings_say(config, part) for part in opened]
    return parts[0] if len(parts) == 1 else on_one_canvas(parts, apart=config.window.step)


def _as_settings_say(config: Config, observed: xr.Dataset) -> xr.Dataset:
    """Filter and coarsen observations that lie on one grid."""
    from nowcast.data.grids import coarsen

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


def comparables(
    config: Config,
    uris: list[str],
    tracking: Tracking,
    *,
    members: int | None = None,
    summary: Summary | None = None,
) -> dict[str, Comparable]:
    """Open what a verification compares: the settings' baselines first, then the named ones.

    Predictors of a series are compared with nowcasters, those of labels with none.

    Parameters
    ----------
    config
        Of the experiment.
    uris
        Names, folders or models of the registry; ``NAME=URI`` gives one a name for the tables.
    tracking
        Where the registry is.
    members
        How many are drawn from the probabilities of each network that gives any, which is then
        compared with them as well, as ``NAME, N members``; None: nothing is drawn.
    summary
        Of the probabilities of each such network, which is compared with it as its field as well,
        as ``NAME, mean``; None: with none.

    Raises
    ------
    ConfigError
        If two have one name, or probabilities are needed and no network gives any.
    """
    named: dict[str, Comparable] = {}
    for text in uris:
        name, uri = _name_of(text)
        if name in named or (name != uri and name in config.baselines):
            raise ConfigError(f"two nowcasters are called {name!r}; give one another NAME=URI")
        named[name] = open_any(uri, tracking, **_given(config, uri))[0]
    if not _predictors(named, "classes"):
        named = {**nowcasters(config, [], tracking), **named}
    derived: dict[str, Callable[[NeuralNowcaster], Nowcaster]] = {}
    if summary is not None:
        derived[summary] = partial(WithSummary, summary=summary)
    if members is not None:
        derived[f"{members} members"] = partial(WithMembers, draw=Draw(members=members))
    return _with_derived(named, derived) if derived else named


def _with_derived(
    compared: Mapping[str, Comparable],
    derived: Mapping[str, Callable[[NeuralNowcaster], Nowcaster]],
) -> dict[str, Comparable]:
    """Give what is compared, and after each network with probabilities what is derived of them."""
    found: dict[str, Comparable] = {}
    for name, one in compared.items():
        found[name] = one
        if isinstance(one, NeuralNowcaster) and one.settings.head.kind == "exceedance":
            found |= {f"{name}, {what}": made(one) for what, made in derived.items()}
    if len(found) == len(compared):
        raise ConfigError(
            "members, mean and median are of probabilities of thresholds, and none of "
            f"{', '.join(found)} is a network that gives these; name one that was trained with "
            "network.head=exceedance, or leave --members and --field out"
        )
    return found


def _name_of(text: str) -> tuple[str, str]:
    name, sign, uri = text.partition("=")
    return (name, uri) if sign and name and not Path(text).exists() else (text, text)


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
        STEPS: {"step": window.step, "members": config.verification.steps_members},
        "pretrained": {"variable": config.variable.name},
    }
    return settings.get(name, cycle_of(config, name))


def _says_step(config: Config) -> bool:
    return "step_minutes" in config.window.model_fields_set


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
    split: str = "",
    lead_times: pd.TimedeltaIndex | None = None,
    thresholds: tuple[float, ...] = (),
    view: View | None = None,
    thorough: bool = True,
    progress: Callable[[int, int], None] | None = None,
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
    split
        What the block is called.
    lead_times, thresholds
        Instead of those of the settings.
    view
        What of the fields is scored; by default the fields themselves.
    thorough
        Whether the settings' references are compared as well, by every measure; else events and
        errors of the nowcasters given.
    progress
        Called with (done, all) after each batch.
    """
    section = config.verification
    if _predictors(compared, "classes"):
        return _compare_labels(
            config, compared, observed, block=block, split=split, progress=progress
        )
    looked = view or Fields()
    series = bool(_predictors(compared, "series"))
    leads = config.window.lead_times if lead_times is None else lead_times
    levels = thresholds or section.thresholds
    more = {} if series or not thorough else _references(config, observed)
    cases = case_times(
        observed,
        nowcasters={**compared, **more},
        lead_times=leads,
        every=pd.Timedelta(minutes=section.every_minutes),
        block=block,
    )
    described = describe(
        observed,
        cases,
        lead_times=leads,
        thresholds=levels if view is None else section.thresholds,
        batch_cases=section.batch_cases,
    )
    cases = selected(described, section.selection, most=section.most_cases)
    chosen: dict[str, Any] = {
        "base_times": cases,
        "lead_times": leads,
        "thresholds": levels,
        "baselines": config.baselines,
        "split": f"{split} {block}".strip() if block else "all",
        "selection": _selection(section),
        "described": described,
        "batch_cases": _batch_cases(section, [*compared.values(), *more.values()], observed, leads),
        "progress": (lambda done: progress(done, len(cases))) if progress else None,
    }
    if series:
        return verify_series(compared, observed, **chosen)
    nowcasters: dict[str, Nowcaster] = dict(compared)  # type: ignore[arg-type]  # no predictors
    if thorough:
        wet = cases[described["wet_share"].sel(base_time=cases).values > 0]
        more |= _smoothed(config, nowcasters, observed, wet, leads)
    first = {name: one for name, one in nowcasters.items() if name in config.baselines}
    basic = standard_measures(observed, levels, view=looked, basic=True)
    return verify(
        {**first, **more, **nowcasters},
        observed,
        references=tuple(more),
        view=looked,
        measures=None if thorough else basic,
        **chosen,
    )


def _batch_cases(
    section: VerificationSection,
    compared: Sequence[Comparable],
    observed: xr.Dataset,
    lead_times: pd.TimedeltaIndex,
) -> int:
    """Give how many cases are in memory at a time: fewer where ensembles on a large grid are."""
    fields = sum(getattr(one, "members", 1) for one in compared)
    of_case = fields * len(lead_times) * observed.sizes["y"] * observed.sizes["x"]
    return max(1, min(section.batch_cases, MOST_VALUES // of_case))


def _selection(section: VerificationSection) -> str:
    most = f", {section.most_cases} at most" if section.most_cases else ""
    return f"{section.selection}{most}, {section.every_minutes} min apart or more"


def _references(config: Config, observed: xr.Dataset) -> dict[str, Nowcaster]:
    """Give the references of the settings that are nowcasters by themselves, for rain."""
    section = config.verification
    if STEPS not in section.references or known_variable(observed).name not in VARIABLES:
        return {}
    return {STEPS: known.open_nowcaster(STEPS, **_given(config, STEPS))}


def _smoothed(
    config: Config,
    compared: Mapping[str, Nowcaster],
    observed: xr.Dataset,
    wet: pd.DatetimeIndex,
    lead_times: pd.TimedeltaIndex,
) -> dict[str, Nowcaster]:
    """Give, for each network of rain, extrapolation as smooth as its nowcasts are.

    Where no width can be found, such as where it does not rain, there is none, and that is logged.
    """
    from nowcast.nowcasters.extrapolation import Extrapolation
    from nowcast.nowcasters.smoothed import UnmatchedError, matched

    networks = {
        name: one
        for name, one in compared.items()
        if isinstance(one, NeuralNowcaster | EndpointNowcaster)
    }
    wanted = SMOOTHED in config.verification.references and networks
    if not wanted or known_variable(observed).name not in VARIABLES:
        return {}
    told = "no smoothed extrapolation is compared with %s: %s"
    if not len(wet):
        _LOG.warning(told, ", ".join(networks), "at no base time does a pixel reach a threshold")
        return {}
    places = np.unique(np.linspace(0, len(wet) - 1, MATCHED_CASES).round().astype(int))
    extrapolation = Extrapolation(**_given(config, "extrapolation"))
    seen = batches_of_cases(
        {**networks, "extrapolation": extrapolation},
        observed,
        base_times=wet[places],
        until=pd.Timedelta(0),
        batch_cases=config.verification.batch_cases,
    )
    some = pd.DatetimeIndex([base_time for _, times in seen for base_time in times])
    found: dict[str, Nowcaster] = {}
    for name, one in networks.items():
        try:
            found[f"extrapolation, smooth as {name}"] = matched(
                one,
                observed,
                base_times=some,
                lead_times=lead_times,
                like=name,
                extrapolation=extrapolation,
            )
        except UnmatchedError as reason:
            _LOG.warning(told, name, reason)
    return found


def view(
    observed: xr.Dataset, points: Path | None, areas: Path | None, *, accumulate: bool
) -> View | None:
    """Give what of the fields is scored: amounts, or what is at places; None for the fields.

    Raises
    ------
    ConfigError
        If points and areas are both given.
    """
    from nowcast.places import read_areas, read_points
    from nowcast.verification.views import Accumulations, AtPlaces

    if points and areas:
        raise ConfigError(f"score points ({points}) or areas ({areas}), not both in one table")
    if points:
        return AtPlaces(read_points(points, observed), accumulate)
    if areas:
        return AtPlaces(read_areas(areas, observed), accumulate)
    return Accumulations() if accumulate else None


def report(
    scores: xr.Dataset, compared: Mapping[str, Comparable], observed: xr.Dataset, *, path: Path
) -> Path:
    """Write the report of a verification, with animations of the champion's worst cases.

    A network with members drawn, or with another field, is none that could be promoted, and so not
    the champion.

    Parameters
    ----------
    scores
        See `compare`.
    compared
        By name; the champion is found among them.
    observed
        That they were scored on.
    path
        Of the HTML file; figures and animations go into a folder beside it.

    Returns
    -------
    Path
        The HTML file.
    """
    from nowcast.report import figures_of, write_report

    own = [name for name, one in compared.items() if not isinstance(one, Derived)]
    name = champion(scores, among=own)
    worst = _worst(scores, name, compared[name], observed, figures_of(path))
    return write_report(scores, path, worst=worst, title=f"Verification of {name}")


def _worst(
    scores: xr.Dataset, name: str, one: Comparable, observed: xr.Dataset, folder: Path
) -> list[tuple[pd.Timestamp, str, Path]]:
    from nowcast.plots import animation

    if "case_csi" not in scores or isinstance(one, SequencePredictor):
        return []
    leads = pd.TimedeltaIndex(scores["lead_time"].to_index())
    step = one.step or step_of(observed)
    threshold = scores["case_csi"].attrs["threshold"]
    units = scores["threshold"].attrs["units"]
    drawn = []
    for number, base_time in enumerate(worst_cases(scores, name), start=1):
        alone = pd.DatetimeIndex([base_time])
        loaded = near(observed, alone, -max(one.input_frames, 4) * step, leads[-1])
        nowcast = one.nowcast(loaded, base_times=alone, lead_times=leads)
        csi = scores["case_csi"].sel(nowcaster=name, base_time=base_time).item()
        within = scores["case_in_regime"].sel(base_time=base_time)
        kinds = ", ".join(map(str, within["regime"].values[within.values]))
        caption = f"CSI {csi:.2f} at {threshold:g} {units} over all lead times; {kinds}"
        path = folder / f"worst-{number:02d}-{base_time:%Y%m%dT%H%MZ}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        labelled = nowcast.assign_attrs(nowcaster=nowcast.attrs.get("nowcaster", name))
        drawn.append((base_time, caption, animation(loaded, labelled, path=path)))
    return drawn


def network_of(uri: str, config: Config, tracking: Tracking) -> NeuralNowcaster:
    """Open a nowcaster whose weights are wanted.

    Raises
    ------
    ConfigError
        If it has none.
    """
    one, _ = open_nowcaster(uri, tracking, **_given(config, uri))
    if not isinstance(one, NeuralNowcaster):
        raise ConfigError(
            f"{uri!r} has no weights to go on from; give a trained nowcaster: pretrained, its "
            "folder, or a model of the registry"
        )
    return one


def continuing(config: Config, nowcaster: NeuralNowcaster) -> Config:
    """Give settings that train on from a nowcaster: its network, scale and window are taken.

    If the settings' window is its own but for the lead frames, and they say how many, it has these:
    more, which it learns, or fewer. It is asked by the views of the settings, or where they tell
    none and flip and turn, by those it has.
    """
    settings, asked = nowcaster.settings, config.network
    views = settings.views if config.training.augment else 1
    window, head = settings.window, settings.head
    wanted = window_of(config)
    alike = replace(wanted, lead_frames=window.lead_frames) == window
    said = alike and "lead_frames" in config.window.model_fields_set
    leads = wanted.lead_frames if said else window.lead_frames
    taken = {
        "variable": {**vars(settings.variable), "period_hours": config.variable.period_hours},
        "transform": vars(settings.transform),
        "window": {
            "input_frames": window.input_frames,
            "lead_frames": leads,
            "step_minutes": round(window.step / pd.Timedelta(minutes=1)),
        },
        "network": {
            "name": settings.network,
            "settings": settings.network_settings,
            "channels": settings.channels,
            "views": asked.views if "views" in asked.model_fields_set else views,
            "head": head.kind,
            "levels": head.levels,
            "points": settings.points,
        },
    }
    return validate({**config.model_dump(exclude_unset=True), **taken}, source="--from")


def calibrated(
    config: Config,
    uri: str,
    observed: xr.Dataset,
    tracking: Tracking,
    *,
    block: Block | None,
    decisions: Decisions = Decisions(),
    views: Views | None = None,
) -> NeuralNowcaster:
    """Give a network with calibration and decision levels fitted on the cases of a block.

    Raises
    ------
    ConfigError
        If it is no network that gives probabilities of exceedance.
    """
    from nowcast.nowcasters.neural import calibrate

    one, _ = open_nowcaster(uri, tracking, **_given(config, uri))
    if not isinstance(one, NeuralNowcaster) or one.settings.head.kind != "exceedance":
        kind = one.settings.head.kind if isinstance(one, NeuralNowcaster) else "no network"
        raise ConfigError(
            f"{uri!r} gives no probabilities of thresholds ({kind}); calibrate a network that was "
            "trained with network.head=exceedance"
        )
    window, section = one.settings.window, config.verification
    leads = pd.TimedeltaIndex([window.step * lead for lead in range(1, window.lead_frames + 1)])
    every = pd.Timedelta(minutes=section.every_minutes)
    least = leads[: config.training.least_lead_frames or len(leads)]
    cases = case_times(observed, nowcasters={uri: one}, lead_times=least, every=every, block=block)
    if block:  # what lies behind its end may be what the nowcaster is judged by
        times = observed["time"].to_index()
        observed = observed.isel(time=np.flatnonzero(block.holds(times, times)))
    return calibrate(
        one,
        observed,
        base_times=cases,
        decisions=decisions,
        views=views,
        batch_cases=section.batch_cases,
    )


def champion(scores: xr.Dataset, *, among: Sequence[str]) -> str:
    """Give the nowcaster with the best pooled CSI at the main threshold, references apart.

    Of references alone, the best of them; by the RMSE where there is no threshold.
    """
    own = [name for name in among if name not in scores.attrs["references"].split("\n")]
    own = own or list(among)
    main = middle([float(one) for one in scores["threshold"].values])
    if main is None:
        rmse = scores["rmse_pooled"].sel(nowcaster=own).fillna(np.inf)
        return own[int(rmse.argmin("nowcaster"))]
    csi = scores["csi_pooled"].sel(nowcaster=own, threshold=main).fillna(-1.0)
    return own[int(csi.argmax("nowcaster"))]


def _compare_labels(
    config: Config,
    compared: Mapping[str, Comparable],
    observed: xr.Dataset,
    *,
    block: Block | None,
    split: str,
    progress: Callable[[int, int], None] | None,
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
        split=f"{split} {block}".strip() if block else "all",
        batch_cases=section.batch_cases,
        progress=(lambda done: progress(done, len(cases))) if progress else None,
    )


def block(
    config: Config, observed: xr.Dataset, *, period: str = "", split: str = ""
) -> Block | None:
    """Give the block of time that a period or the name of a split asks for; None for all times.

    Several names with ``+`` between, such as ``validation+test``, are taken together.

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
    parts = split.split("+")
    for part in parts:
        if part not in blocks:
            known = ", ".join(blocks)
            raise ConfigError(
                f"unknown split {part!r}; known are {known}, or several with + between"
            )
    if len(parts) == 1:
        return blocks[split]
    pieces = [piece for part in parts for piece in blocks[part].pieces or (blocks[part],)]
    return Block.of(tuple(sorted(pieces, key=lambda piece: piece.start)))


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
        Of the experiment: it knows the variable's cycle, and how nowcasters without weights see
        frames; if it does not say their step, it is that of the observations.
    uri
        Name, folder or model of the registry.
    tracking
        Where the registry is.
    endpoint
        Address that serves it, if it shall compute there.
    """
    given = _given(config, uri)
    if uri != PERIODIC and not _says_step(config):
        given.pop("step", None)  # the observations' own
    nowcaster, provenance = open_nowcaster(uri, tracking, **given)
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
    """Give every lead time of a network; of others, the settings' number of steps.

    A step is that of the settings, if they say one, else that of the observations.
    """
    if isinstance(nowcaster, NeuralNowcaster | EndpointNowcaster):
        window = nowcaster.settings.window
        frames, step = window.lead_frames, window.step
    else:
        frames, step = config.window.lead_frames, nowcaster.step or step_of(observed)
    return pd.TimedeltaIndex([step * lead for lead in range(1, frames + 1)])
