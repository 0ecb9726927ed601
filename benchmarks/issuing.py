"""Time and memory of issuing one nowcast: a network beside extrapolation and STEPS.

``python -m benchmarks.issuing [--nowcaster FOLDER] [--rounds N] [--members] [--grids 64x64 ...]
[--most-seconds S] [--out FILE.json]``

One nowcast of 12 lead times, from frames in memory to an `xarray.Dataset` in physical units, on two
cores and no GPU. Files and maps are not made. Compared are, on grids of 64 x 64, 765 x 700 (KNMI's)
and 1226 x 760 pixels (FMI's):

``lagrangian``
    The network as ``configs/composites.toml`` has it, which gives rain rate and the probabilities
    of 11 thresholds from 6 frames, with weights that nobody fitted: they cost what others cost. Or
    the nowcaster of a folder, under the name of its network; it must forecast rain rate on a grid
    in metres.
``lagrangian, 24 members``
    With ``--members``: the same, and as many members drawn from its probabilities as STEPS has.
``extrapolation``, ``steps``
    By pysteps, of 3 frames; STEPS with 24 members.

Each has a process of its own, with its libraries imported and the frames loaded. There it issues
once, which is told apart: a network is built for the grid then. After that they take turns; a
figure is the median of the rounds, a ratio that of the medians of one run. Above half a million
pixels STEPS takes minutes, and is timed once, without having been warmed up. Memory is the peak of
the process less what it held before the first nowcast. With ``--most-seconds`` whoever would take
longer is left out, as its time on a grid of a tenth as many pixels or more foretells.

Rain is synthetic, on pixels as large as the nowcaster's, 1 km by default, cut out of a square.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks import networks

if TYPE_CHECKING:
    import pandas as pd

    from nowcast.conventions import Variable
    from nowcast.nowcasters import Nowcaster
    from nowcast.nowcasters.neural import NeuralNowcaster

CORES = 2
GRIDS = ((64, 64), (765, 700), (1226, 760))  # y, x
LEADS, MEMBERS = 12, 24
FRAMES, STEP_MINUTES, SPACING_M = 6, 5, 1000.0  # of the network that nobody fitted
FILTERS = (24, 48, 64, 80)
LEVELS = (0.1, 0.3, 0.6, 1.0, 2.0, 3.5, 5.0, 7.5, 10.0, 20.0, 40.0)  # mm/h
REFERENCES = ("extrapolation", "steps")
LARGE = 500_000  # pixels, above which STEPS is timed once
FORETELLS = 0.1  # part of the pixels of a grid, that another must have to tell how long it takes
LEAST_WET = 0.05  # part of the pixels of the last frame: with less rain STEPS does next to nothing
SEED = 0
ISSUE = "issue"
IMPORTED = (
    "pysteps.motion.lucaskanade",
    "pysteps.extrapolation.semilagrangian",
    "pysteps.nowcasts.steps",
)
COLUMNS = ("first call", "s", "cpu s", "peak MB", *(f"x {name}" for name in REFERENCES))


@dataclass(frozen=True)
class Asked:
    """What is measured.

    Parameters
    ----------
    folder
        Of the nowcaster; empty for the network that nobody fitted.
    rounds
        Timings of each candidate.
    members
        Whether the network is measured with members as well.
    most_seconds
        That a nowcast may take.
    """

    folder: str
    rounds: int
    members: bool
    most_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nowcaster", default="", metavar="FOLDER", help="a trained one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", action="store_true", help="also the network with members")
    parser.add_argument(
        "--grids", nargs="+", type=_grid, default=GRIDS, metavar="ROWSxCOLUMNS", help="pixels"
    )
    parser.add_argument(
        "--most-seconds", type=float, default=float("inf"), help="of a nowcast; none by default"
    )
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error(f"--rounds must be 1 or more; received {given.rounds}")
    asked = Asked(given.nowcaster, given.rounds, given.members, given.most_seconds)
    # Threads are counted when libraries are imported, so before any is.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    machine = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
    figures: dict[str, Any] = {"machine": machine}
    print(json.dumps(machine), flush=True)
    before: dict[str, tuple[float, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for grid in sorted(given.grids, key=lambda sides: sides[0] * sides[1]):
            label = "{}x{}".format(*grid)
            rain = str(Path(folder) / f"{label}.nc")
            figures[label] = measure(asked, grid, rain, before)
            print(table(label, figures[label]), flush=True)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(
    asked: Asked, grid: tuple[int, int], rain: str, before: dict[str, tuple[float, int]]
) -> dict[str, Any]:
    """Measure the candidates on a grid in turns; give their medians, and ratios.

    Parameters
    ----------
    asked
        See `Asked`.
    grid : (y, x)
        Pixels.
    rain
        File for the frames.
    before
        Seconds and pixels of the candidates on the last grid that they had; brought up to date.
    """
    pixels = grid[0] * grid[1]
    with networks.fresh_process() as process:
        about = process.submit(_rain, asked.folder, grid, rain).result()
    figures: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, ProcessPoolExecutor] = {}
        for name in _names(about["network"], asked.members):
            expected = _foretold(before.get(name), pixels)
            if expected > asked.most_seconds:
                figures[name] = {"skipped": f"left out: it would take about {expected:.0f} s"}
                continue
            running[name] = stack.enter_context(networks.fresh_process())
            warm_up = not _only_once(name, pixels)
            started = running[name].submit(_start, asked.folder, name, rain, warm_up)
            figures[name] = started.result()
        timings: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
        for turn in range(asked.rounds):
            for name, process in running.items():
                if turn == 0 or not _only_once(name, pixels):
                    timings[name].append(process.submit(networks.timed, ISSUE).result())
        for name, process in running.items():
            wall, cpu = (statistics.median(one) for one in zip(*timings[name], strict=True))
            peak = process.submit(_peak_mb).result() - figures[name]["held_mb"]
            figures[name] |= {"s": wall, "cpu_s": cpu, "peak_mb": peak}
            figures[name]["rounds"] = len(timings[name])
            before[name] = (wall, pixels)
    return {**about, "candidates": figures, "ratios": _ratios(figures)}


def table(label: str, figures: dict[str, Any]) -> str:
    """Give the figures of a grid as a table, with what is to be known of them."""
    rows = figures["candidates"]
    width = max(map(len, (label, *rows)))
    lines = ["", f"{label:{width}}" + "".join(f"{column:>16}" for column in COLUMNS)]
    remarks = [f"{100 * figures['wet']:.0f} % of the last frame are wet"]
    for name, row in rows.items():
        if "skipped" in row:
            lines.append(f"{name:{width}}  {row['skipped']}")
            continue
        ratios = [figures["ratios"].get(f"{name} / {one}", {}).get("s") for one in REFERENCES]
        shown = [*(row[key] for key in ("first_s", "s", "cpu_s", "peak_mb")), *ratios]
        lines.append(f"{name:{width}}" + "".join(f"{_figure(one):>16}" for one in shown))
        if row["first_s"] is None:
            remarks.append(f"{name} was timed once, and not warmed up")
    return "\n".join([*lines, *(f"  {remark}" for remark in remarks)])


def _foretold(before: tuple[float, int] | None, pixels: int) -> float:
    """Give the seconds that a grid will take; 0 where nothing foretells it."""
    seconds, fewer = before or (0.0, 0)
    return seconds * pixels / fewer if fewer >= FORETELLS * pixels else 0.0


def _figure(value: float | None) -> str:
    """Give three digits, of large numbers all; a dash for what was not measured."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratios(figures: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        f"{name} / {reference}": {
            key: row[key] / figures[reference][key]
            for key in ("s", "cpu_s", "peak_mb")
            if figures[reference][key] > 0
        }
        for name, row in figures.items()
        for reference in REFERENCES
        if name != reference and "s" in row and "s" in figures[reference]
    }


def _names(network: str, members: bool) -> list[str]:
    drawn = [f"{network}, {MEMBERS} members"] if members else []
    return [*REFERENCES, network, *drawn]


def _only_once(name: str, pixels: int) -> bool:
    return name == "steps" and pixels > LARGE


def _grid(text: str) -> tuple[int, int]:
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise argparse.ArgumentTypeError(f"a grid is written as 765x700; received {text!r}")
    return int(rows), int(columns)


# What follows runs in the process of a candidate.


def _rain(folder: str, grid: tuple[int, int], path: str) -> dict[str, Any]:
    """Write the frames that a nowcast needs; tell the network, and how much of the last is wet."""
    from nowcast.conventions import RAIN_RATE, REFLECTIVITY, VARIABLES
    from nowcast.data.synthetic import synthesise
    from nowcast.nowcasters.extrapolation import RAIN_FROM
    from nowcast.rainrate import to_reflectivity

    settings = _network(folder).settings
    if settings.variable.name not in VARIABLES or settings.grid_units != "m":
        raise ValueError(
            f"{folder} forecasts {settings.variable.name} on pixels in {settings.grid_units}; "
            "measure one of rain rate or reflectivity on a grid in metres"
        )
    step = settings.window.step.total_seconds() / 60
    observed = synthesise(
        hours=settings.window.input_frames * step / 60,
        size=max(grid),
        grid_spacing_m=settings.grid_spacing,
        step_minutes=round(step),
        seed=SEED,
    ).isel(y=slice(grid[0]), x=slice(grid[1]))
    last = observed[RAIN_RATE.name][-1].values
    if settings.variable == REFLECTIVITY:
        echo = to_reflectivity(observed[RAIN_RATE.name]).assign_attrs(
            units=REFLECTIVITY.units, standard_name=REFLECTIVITY.standard_name
        )
        observed = observed.drop_vars(RAIN_RATE.name).assign({REFLECTIVITY.name: echo})
    observed.to_netcdf(path)
    wet = float((last >= RAIN_FROM).mean())
    if wet < LEAST_WET:
        raise ValueError(f"{100 * wet:.1f} % of the last frame are wet, too little; choose a SEED")
    return {"network": settings.network, "pixels": last.size, "wet": wet}


def _start(folder: str, name: str, rain: str, warm_up: bool) -> dict[str, Any]:
    """Make a candidate ready; give what it holds, and the seconds of its first nowcast."""
    import pandas as pd

    from nowcast.conventions import VARIABLES
    from nowcast.data.observations import open_observations
    from nowcast.frames import step_of
    from nowcast.nowcasters.extrapolation import quiet

    observed = open_observations(rain).load()
    step = step_of(observed)
    (variable,) = (VARIABLES[name] for name in observed if name in VARIABLES)
    one = _candidate(folder, name, step, variable)
    with quiet():
        for module in IMPORTED:
            import_module(module)
    base_times = observed["time"].to_index()[-1:]
    lead_times = pd.TimedeltaIndex([step * lead for lead in range(1, LEADS + 1)])

    def issue() -> None:
        nowcast = one.nowcast(observed, base_times=base_times, lead_times=lead_times)
        fields = nowcast[variable.name]
        if "member" in fields.dims and fields[:, 0].equals(fields[:, 1]):
            raise RuntimeError(f"all members of {name} are the same; choose a SEED with more rain")

    networks.prepared[ISSUE] = issue
    held, started = psutil.Process().memory_info().rss / 1e6, time.perf_counter()
    if warm_up:
        issue()
    return {"held_mb": held, "first_s": time.perf_counter() - started if warm_up else None}


def _candidate(folder: str, name: str, step: "pd.Timedelta", variable: "Variable") -> "Nowcaster":
    from nowcast.nowcasters import open_nowcaster
    from nowcast.nowcasters.members import Draw, WithMembers

    if name in REFERENCES:
        settings = {"members": MEMBERS} if name == "steps" else {}
        return open_nowcaster(name, step=step, variable=variable, **settings)
    network = _network(folder)
    return network if name == network.settings.network else WithMembers(network, Draw(MEMBERS))


def _network(folder: str) -> "NeuralNowcaster":
    """Open the nowcaster of a folder, or make the one that nobody fitted."""
    import pandas as pd

    from nowcast.conventions import RAIN_RATE
    from nowcast.frames import Window
    from nowcast.networks import build, version_of
    from nowcast.networks.heads import Head
    from nowcast.nowcasters.neural import NeuralNowcaster
    from nowcast.nowcasters.saved import NeuralSettings
    from nowcast.rainrate import Transform

    if folder:
        return NeuralNowcaster.load(folder)
    settings = NeuralSettings(
        network="lagrangian",
        network_version=version_of("lagrangian"),
        network_settings={"filters": FILTERS},
        head=Head("exceedance", LEVELS),
        variable=RAIN_RATE,
        transform=Transform("log", offset=0.0, reference=0.5, top=10.0),
        window=Window(FRAMES, LEADS, pd.Timedelta(minutes=STEP_MINUTES)),
        grid=(64, 64),
        grid_spacing=SPACING_M,
        grid_units="m",
    )
    network = build(
        settings.network,
        settings=settings.network_settings,
        input_frames=FRAMES,
        lead_frames=LEADS,
        grid=settings.grid,
        head=settings.head,
        channels=settings.channels,
        transform=settings.transform,
    )
    return NeuralNowcaster(settings, network.get_weights())


def _peak_mb() -> float:
    """Give the most memory that the process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
