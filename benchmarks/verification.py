"""Speed and memory of verification by all scores.

``python -m benchmarks.verification [PART ...] [--cases N] [--out FILE]``; without a part, all of
`PARTS`. Cases are of 64 x 64 pixels and 12 lead times, half an hour apart, in events of a day of
synthetic rain with a missing corner; five nowcasters are compared on them: persistence,
extrapolation by pysteps, and three that cost next to nothing: a smooth field, an ensemble of 12
members, and probabilities.

time
    Seconds to verify the cases (by default 500), and how many of them each nowcaster took to issue:
    what is left is scoring.
memory
    Peak memory of 100, 500 and 2,000 cases, read through Dask from a Zarr store of 12 frames to a
    chunk; each in a process of its own, of observations that are as long as needed.
same
    The largest difference of any score between frames in memory and frames read through Dask, in
    batches of another size. It is to be zero.
bands
    How often 90 % bands hold the true score, and two nowcasters of equal skill have p < 0.05, in
    simulations: rain of blocks is log-normal, with a spread of 0.8 or 1.5 of its logarithm, the
    score a mean weighted by it.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.ndimage import gaussian_filter

from nowcast.conventions import build_nowcast, known_variable, with_exceedance
from nowcast.data.synthetic import synthesise
from nowcast.frames import step_of
from nowcast.nowcasters import Nowcaster, open_nowcaster
from nowcast.verification import case_times, verify
from nowcast.verification.bootstrap import bands, paired

SIDE, LEADS, STEP_MINUTES = 64, 12, 10
LEAD_TIMES = pd.timedelta_range("10min", periods=LEADS, freq=f"{STEP_MINUTES}min")
THRESHOLDS = (0.1, 1.0, 5.0, 10.0)  # mm/h
APART = pd.Timedelta("30min")  # at least, between two cases
EVENT_HOURS = 24.0
FRAMES_OF_EVENT = 145
CASES_OF_EVENT = 43
CHUNK = 12  # frames
MISSING = 8  # rows and columns, in a corner of each frame
MEMBERS = 12
SIZES = (100, 500, 2_000)  # cases of which the peak memory is told
SEED = 1


@dataclass(frozen=True)
class Drifting:
    """The last frame, moved by whole pixels: costs next to nothing, and has all that is scored.

    Parameters
    ----------
    kind
        ``smooth``, ``members`` or ``probabilities``.
    """

    kind: str
    input_frames: int = 1
    step: pd.Timedelta | None = None

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the frame of each base time, each member moved as fast as its number says."""
        variable = known_variable(observed)
        frames = observed[variable.name].sel(time=base_times).values
        steps = (lead_times / (self.step or step_of(observed))).astype(int)
        values = np.empty((len(base_times), MEMBERS, len(steps), *frames.shape[1:]), np.float32)
        for member in range(MEMBERS if self.kind != "smooth" else 1):
            for lead, many in enumerate(steps):
                values[:, member, lead] = np.roll(frames, (member * many // 6, many), axis=(1, 2))
        shown = {
            "smooth": lambda: gaussian_filter(np.nan_to_num(values[:, 0]), (0, 0, 2.0, 2.0)),
            "members": lambda: values,
            "probabilities": lambda: np.nan_to_num(np.median(values, axis=1)),
        }[self.kind]()
        nowcast = build_nowcast(
            shown,
            observed=observed,
            variable=variable,
            base_times=base_times,
            lead_times=lead_times,
        )
        if self.kind != "probabilities":
            return nowcast
        exceeded = np.stack([(values >= one).mean(axis=1) for one in THRESHOLDS], axis=1)
        return with_exceedance(nowcast, exceeded, thresholds=THRESHOLDS)

    @property
    def members(self) -> int:
        """Of the ensemble."""
        return MEMBERS if self.kind == "members" else 1


def compared() -> dict[str, Nowcaster]:
    """Give five nowcasters by name."""
    baselines = {name: open_nowcaster(name) for name in ("persistence", "extrapolation")}
    return baselines | {kind: Drifting(kind) for kind in ("smooth", "members", "probabilities")}


def verified(observed: xr.Dataset, cases: int, *, batch_cases: int = 8) -> tuple[xr.Dataset, int]:
    """Score the five on the first cases; give the scores and the number of cases."""
    nowcasters = compared()
    times = case_times(observed, nowcasters=nowcasters, lead_times=LEAD_TIMES, every=APART)[:cases]
    scores = verify(
        nowcasters,
        observed,
        base_times=times,
        lead_times=LEAD_TIMES,
        thresholds=THRESHOLDS,
        batch_cases=batch_cases,
    )
    return scores, len(times)


def took(store: str, cases: int) -> dict[str, Any]:
    """Time a verification; whatever is imported and compiled once is not counted."""
    observed = _open(store, None)
    verified(observed, 8)
    began, worked = time.perf_counter(), time.process_time()
    scores, number = verified(observed, cases)
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    issuing = {
        str(name): round(float(one) * number, 1)
        for name, one in zip(scores["nowcaster"].values, scores["seconds"].values, strict=True)
    }
    return {
        "cases": number,
        "seconds": round(seconds, 1),
        "seconds_of_processors": round(worked, 1),
        "seconds_issuing": issuing,
        "seconds_scoring": round(seconds - sum(issuing.values()), 1),
        "scores": len(scores.data_vars),
    }


def peak(store: str, cases: int) -> dict[str, Any]:
    """Give the peak memory of a process that verifies, and what it held before."""
    observed = _open(store, CHUNK)
    observed = observed.isel(time=slice(-(-cases // CASES_OF_EVENT) * FRAMES_OF_EVENT))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores, number = verified(observed, cases)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cases": number,
        "peak_mb": round(after / 1e3),
        "before_mb": round(before / 1e3),
        "frames_mb": round(observed["rain_rate"].nbytes / 1e6),
        "resampled": scores.attrs["resampled"],
    }


def unlike(store: str, cases: int) -> dict[str, Any]:
    """Give the largest difference of any score, in memory and through Dask."""
    inside = _open(store, None)
    scores, number = verified(inside, cases)
    figures: dict[str, Any] = {"cases": number}
    for batch_cases in (8, 3):
        lazy = _open(store, 7)
        streamed = verified(lazy, cases, batch_cases=batch_cases)[0]
        figures[f"through Dask, {batch_cases} cases in a batch"] = {
            "largest_difference": max(
                _difference(scores[name], streamed[name])
                for name in scores.data_vars
                if name != "seconds"
            ),
            "identical": scores.drop_vars("seconds").identical(streamed.drop_vars("seconds")),
        }
    return figures


def held(store: str, cases: int) -> dict[str, Any]:  # noqa: ARG001
    """Count how often bands hold what is true, and tests find what is not."""
    return {
        f"{blocks} blocks, spread {spread}": _simulated(blocks, spread)
        for spread in (0.8, 1.5)
        for blocks in (5, 8, 20, 60)
    }


def _simulated(blocks: int, spread: float) -> dict[str, float]:
    random, repeats = np.random.default_rng(SEED), 4000
    rain = np.exp(spread * random.standard_normal((blocks, 1, repeats)))
    shared = 0.4 + 0.1 * random.standard_normal((blocks, 1, repeats))
    skill = shared + 0.08 * random.standard_normal((blocks, 2, repeats))
    dims = ("block", "nowcaster", "repeat")
    sums = xr.Dataset(
        {"skill": (dims, rain * skill), "rain": (dims, np.broadcast_to(rain, skill.shape))},
        coords={"nowcaster": ["one", "two"]},
    )

    def scores(total: xr.Dataset) -> xr.Dataset:
        return xr.Dataset({"mean": total["skill"] / total["rain"]})

    band = bands(sums, scores, ["mean"])["mean_band"].sel(nowcaster="one")
    inside = (band.sel(bound="low") < 0.4) & (band.sel(bound="high") > 0.4)
    p_values = paired(sums, scores, "mean", ["two"], samples=2000)["mean_gain_p"]
    wrong = p_values.sel(nowcaster="one", reference="two") < 0.05
    return {"band_holds": round(float(inside.mean()), 3), "p_below_5_%": float(wrong.mean())}


PARTS: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "time": lambda store, cases: _alone(took, store, cases),
    "memory": lambda store, _: {f"{cases}": _alone(peak, store, cases) for cases in SIZES},
    "same": lambda store, cases: _alone(unlike, store, min(cases, 100)),
    "bands": lambda store, cases: _alone(held, store, cases),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    parts = given.parts or list(PARTS)
    figures: dict[str, Any] = {"machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]}}
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "rain.zarr")
        _alone(_write, store, max([given.cases, *(SIZES if "memory" in parts else ())]))
        for name in parts:
            figures[name] = PARTS[name](store, given.cases)
            print(name, json.dumps(figures[name], indent=2), flush=True)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


def _write(store: str, cases: int) -> None:
    """Write enough events of rain for so many cases."""
    events = -(-cases // CASES_OF_EVENT)
    observed = synthesise(
        events=events, hours=EVENT_HOURS, size=SIDE, step_minutes=STEP_MINUTES, seed=SEED
    )
    row = np.arange(SIDE)
    corner = (row[:, None] < MISSING) & (row < MISSING)
    observed["rain_rate"] = observed["rain_rate"].where(~xr.DataArray(corner, dims=("y", "x")))
    chunks = {"rain_rate": {"chunks": (CHUNK, SIDE, SIDE)}}
    observed.to_zarr(store, encoding=chunks, safe_chunks=False, consolidated=False)


def _open(store: str, frames: int | None) -> xr.Dataset:
    """Open the events in Dask chunks of so many frames, or in memory."""
    observed = xr.open_zarr(store, chunks={}, consolidated=False)
    return observed.load() if frames is None else observed.chunk(time=frames)


def _difference(one: xr.DataArray, other: xr.DataArray) -> float:
    """Give the largest difference; infinity where one alone is missing."""
    if one.dtype.kind not in "fiub":
        return 0.0 if one.equals(other) else np.inf
    first, second = (part.values.astype(float) for part in (one, other))
    apart = np.where(np.isnan(first) & np.isnan(second), 0.0, abs(first - second))
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    sys.exit(main())
