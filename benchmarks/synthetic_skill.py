"""The champion beside persistence and extrapolation on synthetic rain of seeds it never saw.

``python benchmarks/synthetic_skill.py --work nowcast-work`` after ``make demo``. Prints, for every
lead time, the mean over the seeds of RMSE and of CSI at the promotion threshold.
"""

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

from nowcast import experiments
from nowcast.config import Config
from nowcast.durable import write_json
from nowcast.tracking import Tracking, resolve


def scores_of(seed: int, *, events: int, model: str, tracking: Tracking) -> xr.Dataset:
    """Verify the model and the baselines on all cases of one seed's events."""
    config = Config().replace([f"synthetic.seed={seed}", f"synthetic.events={events}"])
    observed = experiments.synthetic(config).load()
    compared = experiments.nowcasters(config, [model], tracking)
    return experiments.compare(config, compared, observed, block=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("nowcast-work"))
    parser.add_argument("--model", default="models:/nowcast@champion")
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203])
    parser.add_argument("--events", type=int, default=20, help="of each seed")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    if Config().synthetic.seed in given.seeds:
        parser.error(f"seed {Config().synthetic.seed} is the one that the demo trains on")
    tracking = Tracking(given.work)
    model = resolve(given.model, tracking)
    parts = [
        scores_of(seed, events=given.events, model=model, tracking=tracking) for seed in given.seeds
    ]
    mean = xr.concat(parts, dim="seed", coords="minimal", compat="override").mean("seed")
    threshold = Config().promotion.threshold
    minutes = (mean["lead_time"].values / np.timedelta64(1, "m")).astype(int)
    cases = sum(int(part.attrs["protocol"].split('"cases": ')[1].split(",")[0]) for part in parts)
    print(f"mean of seeds {given.seeds}, {cases} cases; columns are lead times in minutes")
    figures = {}
    for label, values in (
        ("RMSE (mm/h)", mean["rmse"]),
        (f"CSI at {threshold:g} mm/h", mean["csi"].sel(threshold=threshold)),
    ):
        print(f"\n{label:26s}" + "".join(f"{minute:7d}" for minute in minutes))
        for name in mean["nowcaster"].values:
            row = values.sel(nowcaster=name).values
            figures[f"{label} {name}"] = [round(float(value), 4) for value in row]
            print(f"{name!s:26s}" + "".join(f"{value:7.3f}" for value in row))
    if given.out:
        write_json(given.out, {"seeds": given.seeds, "cases": cases, "figures": figures})


if __name__ == "__main__":
    main()
