"""Wet spells among cases: what a bootstrap resamples, and which cases are scored.

Two cases of one storm are not two pieces of evidence, so cases are resampled in blocks: whole
events, or a few hours where there are too few events. All of it follows from what
`nowcast.verification.regimes.describe` says of the cases, and so from the observations alone.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

WET_SHARE = 0.01  # of the observed pixels, at or above the lowest threshold, from which it is wet
DRY_SPELL = pd.Timedelta("6h")  # longest time between two wet cases of one event
LEAST_EVENTS = 8  # fewer are too few to resample
BLOCK = pd.Timedelta("3h")  # resampled then
SELECTIONS = ("all", "wet", "dry", "events")


@dataclass(frozen=True, eq=False)
class Blocks:
    """Which cases are resampled together.

    Parameters
    ----------
    of_case : (case,)
        Number of each case's block; every block has a case.
    labels
        First and last base time of each block.
    unit
        What a block is: ``event``, or ``3-hour block``.
    resampled
        How many there are, in words, and why they are no events.
    """

    of_case: np.ndarray
    labels: tuple[str, ...]
    unit: str
    resampled: str


def is_wet(described: xr.Dataset) -> np.ndarray:
    """Tell which cases have rain, now or later: on `WET_SHARE` of the observed pixels or more."""
    return np.asarray(_most_rain(described) >= WET_SHARE)


def blocks_of_cases(
    described: xr.Dataset,
    cases: pd.DatetimeIndex | None = None,
    *,
    least_events: int = LEAST_EVENTS,
    block: pd.Timedelta = BLOCK,
) -> Blocks:
    """Give the event to which each case belongs, or its block of time if there are few events.

    An event is a wet spell: wet cases belong together while no more than `DRY_SPELL` without one
    lies between two. The boundary between two events is in the middle of what divides them, dry
    or without data, so a dry case belongs to the nearest event.

    Parameters
    ----------
    described
        See `nowcast.verification.regimes.describe`.
    cases
        Base times for which blocks are given, of those described: by default all. Events are
        found among all that are described, so that leaving cases out does not divide an event.
    least_events
        With fewer among the cases, blocks of time are given, which are cut at whole multiples of
        their length in UTC. What lies in two of them is less independent than two events.
    block
        Length of these.

    Examples
    --------
    >>> times = pd.to_datetime(["2024-06-01T00:00", "2024-06-01T03:00", "2024-06-01T10:00"])
    >>> described = xr.Dataset({"wet_share": ("base_time", [0.2, 0.0, 0.3]),
    ...                         "wet_share_later": ("base_time", [0.1, 0.0, 0.3])},
    ...                        coords={"base_time": times})
    >>> blocks_of_cases(described, least_events=2)
    Blocks(of_case=array([0, 0, 1]),
           labels=('2024-06-01T00:00/2024-06-01T03:00', '2024-06-01T10:00/2024-06-01T10:00'),
           unit='event', resampled='2 events')
    >>> blocks_of_cases(described).resampled
    '3 blocks of 3 hours, since there are only 2 events'
    """
    times = described.indexes["base_time"] if cases is None else cases
    starts = _boundaries(described)
    events = len(np.unique(_event_of(times, starts))) if is_wet(described).any() else 0
    if events >= least_events:
        return _blocks(times, _event_of(times, starts), "event", _counted(events, "event"))
    hours = f"{block / pd.Timedelta('1h'):g}"
    found = _blocks(times, times.floor(block).to_numpy(), f"{hours}-hour block", "")
    few = {0: "are no events", 1: "is only 1 event"}.get(events, f"are only {events} events")
    resampled = f"{_counted(len(found.labels), 'block')} of {hours} hours, since there {few}"
    return Blocks(found.of_case, found.labels, found.unit, resampled)


def selected(
    described: xr.Dataset, selection: str, *, most: int = 0, seed: int = 0
) -> pd.DatetimeIndex:
    """Give the base times of a selection, in order.

    Parameters
    ----------
    described
        See `nowcast.verification.regimes.describe`.
    selection
        ``all``; ``wet``, as `is_wet`; ``dry``, the opposite, of which something was observed; or
        ``events``: equally many wet cases of each event, drawn at random, so that one long rain
        does not outvote the rest; all of an event that has fewer.
    most
        Cases at most, 0 for no limit. Of ``events`` fewer are drawn from each, any other
        selection is thinned evenly. Without a limit as many are drawn from each event as the
        middle one (the median) has.
    seed
        Of the draw; unused but for ``events``.

    Raises
    ------
    ValueError
        If there is no such selection, or no case in it.
    """
    if selection not in SELECTIONS:
        raise ValueError(f"no selection {selection!r}; there are {', '.join(SELECTIONS)}")
    wet = is_wet(described)
    dry = np.asarray(_most_rain(described) < WET_SHARE)
    chosen = {"all": np.ones(len(wet), bool), "wet": wet, "dry": dry, "events": wet}[selection]
    if not chosen.any():
        raise ValueError(_why_none(described, selection))
    times = described.indexes["base_time"]
    if selection == "events":
        return _drawn(times[chosen], _boundaries(described), most, np.random.default_rng(seed))
    return _thinned(times[chosen], most)


def _most_rain(described: xr.Dataset) -> np.ndarray:
    """Give the wet share now or later, whichever is larger; NaN where neither is known."""
    most: np.ndarray = np.fmax(described["wet_share"].values, described["wet_share_later"].values)
    return most


def _boundaries(described: xr.Dataset) -> pd.DatetimeIndex:
    """Give the times that divide each event from the next."""
    wet = described.indexes["base_time"][is_wet(described)].sort_values()
    apart = wet[1:] - wet[:-1]
    return pd.DatetimeIndex((wet[:-1] + apart / 2)[apart > DRY_SPELL])


def _event_of(times: pd.DatetimeIndex, boundaries: pd.DatetimeIndex) -> np.ndarray:
    return np.asarray(boundaries.searchsorted(times))


def _blocks(times: pd.DatetimeIndex, of_case: np.ndarray, unit: str, resampled: str) -> Blocks:
    numbers, of_case = np.unique(of_case, return_inverse=True)
    members = (times[of_case == number] for number in range(len(numbers)))
    labels = tuple(
        "/".join(end.strftime("%Y-%m-%dT%H:%M") for end in (one.min(), one.max()))
        for one in members
    )
    return Blocks(of_case, labels, unit, resampled)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _thinned(times: pd.DatetimeIndex, most: int) -> pd.DatetimeIndex:
    if not 0 < most < len(times):
        return times
    return times[np.linspace(0, len(times) - 1, most).round().astype(int)]


def _drawn(
    wet: pd.DatetimeIndex, boundaries: pd.DatetimeIndex, most: int, random: np.random.Generator
) -> pd.DatetimeIndex:
    """Draw equally many times from each event; if even one from each is too many, from some."""
    of_case = _event_of(wet, boundaries)
    sizes = np.bincount(of_case)
    wanted = int(np.median(sizes)) if not most else _quota(sizes, most)
    chosen = [
        random.choice(np.flatnonzero(of_case == event), min(size, max(wanted, 1)), replace=False)
        for event, size in enumerate(sizes)
    ]
    if most and not wanted:
        chosen = [chosen[event] for event in random.choice(len(sizes), most, replace=False)]
    return wet[np.sort(np.concatenate(chosen))]


def _quota(sizes: np.ndarray, most: int) -> int:
    """Give how many at most may come from each, so that all together are no more than `most`."""
    quotas = np.arange(sizes.max() + 1)
    return int(quotas[np.minimum(sizes, quotas[:, None]).sum(axis=1) <= most].max())


def _why_none(described: xr.Dataset, selection: str) -> str:
    number = described.sizes["base_time"]
    if not number:
        return "there is no case; choose a longer period"
    if np.isnan(_most_rain(described)).all():
        return (
            f"the selection {selection!r} needs to know where it rains, which without a threshold "
            "nobody does; give thresholds or select 'all'"
        )
    kind = "dry" if selection == "dry" else "wet"
    return (
        f"none of {number} cases is {kind}: wet is {WET_SHARE:.0%} of the observed pixels at or "
        "above the lowest threshold, at the base time or up to the last lead time; "
        "select 'all', or choose a longer period or another lowest threshold"
    )
