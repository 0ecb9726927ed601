"""The whole line on synthetic rain: observe, train, verify, promote, serve, issue."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import xarray as xr

from nowcast import experiments
from nowcast.config import Config, ConfigError
from nowcast.frames import base_times
from nowcast.issuing import issue
from nowcast.serving import endpoint
from nowcast.tracking import Decision, Tracking, check_lead_times, promote
from nowcast.training import Trained, train, window_of
from nowcast.verification import save_scores

# What each network can learn in a minute or two; the limits keep the demo short on a slow machine.
# Settings of the training that the user gives win.
NETWORKS = {
    "cnn_lstm": {"epochs": 2, "learning_rate": 1e-3, "minutes": 1.0},
    "convlstm": {"epochs": 3, "minutes": 2.5},
}


@dataclass(frozen=True)
class Demonstration:
    """What the demo made.

    Parameters
    ----------
    scores
        Of every nowcaster on the test block.
    decision
        Which became the champion, and why.
    served
        The version behind the endpoint.
    files
        The forecast, its panel and its animation.
    scores_file, report
        The scores as netCDF, and what they say as HTML.
    seconds
        How long it took.
    """

    scores: xr.Dataset
    decision: Decision
    served: str
    files: list[Path]
    scores_file: Path
    report: Path
    seconds: float


def demonstrate(
    config: Config, tracking: Tracking, *, say: Callable[[str], None], verbose: int = 1
) -> Demonstration:
    """Run the whole line and give what came of it.

    Parameters
    ----------
    config
        Of the experiment; its network is replaced by each of `NETWORKS`.
    tracking
        Where runs and models go.
    say
        Told what happens next.
    verbose
        Of the training: 0 silent, 1 progress bar, 2 a line per epoch.

    Raises
    ------
    ConfigError
        If the settings name observations or a network.
    ValueError
        If no lead time is as long as those that promotion averages.
    """
    if (
        config.data.observations != experiments.SYNTHETIC
        or "name" in config.network.model_fields_set
    ):
        raise ConfigError(
            "the demo makes synthetic rain and trains the networks "
            f"{' and '.join(NETWORKS)}; leave data.observations and network.name out, or use "
            "`nowcast train`"
        )
    check_lead_times(
        config.window.lead_times, first_lead_minutes=config.promotion.first_lead_minutes
    )
    started = time.monotonic()
    out = tracking.work / "demo"
    say(f"1/7 observations: {config.synthetic.events} events of synthetic rain")
    observed = experiments.synthetic(config).load()
    trained, said = {}, config.training.model_fields_set
    for position, (name, settings) in enumerate(NETWORKS.items(), start=2):
        say(f"{position}/7 training {name}")
        own = config.replace(
            [f"network.name={name}"]
            + [f"training.{key}={value}" for key, value in settings.items() if key not in said]
        )
        one = train(own, observed, tracking=tracking, verbose=verbose)
        trained[one.uri] = one
    say(f"4/7 verifying both beside {' and '.join(config.baselines)} on the test block")
    report = out / "report.html"
    scores = _verify(config, trained, observed, tracking, report)
    scores_file = save_scores(scores, out / "scores.nc")
    say("5/7 promoting")
    decision = promote(
        scores, candidates=list(trained), tracking=tracking, **config.promotion.model_dump()
    )
    served = decision.best
    say(f"6/7 serving {served} on loopback")
    with endpoint(served, tracking, log=out / "endpoint.log") as address:
        say("7/7 issuing a nowcast through the endpoint")
        files = _issue(config, served, address, observed, tracking, out)
    seconds = time.monotonic() - started
    return Demonstration(scores, decision, served, files, scores_file, report, seconds)


def _verify(
    config: Config,
    trained: dict[str, Trained],
    observed: xr.Dataset,
    tracking: Tracking,
    report: Path,
) -> xr.Dataset:
    compared: dict[str, experiments.Comparable] = {
        **experiments.nowcasters(config, [], tracking),
        **{uri: one.nowcaster for uri, one in trained.items()},
    }
    block = experiments.block(config, observed, split="test")
    with tracking.run(config.experiment, "verification") as run:
        scores = experiments.compare(config, compared, observed, block=block, split="test")
        run.scores(scores)
        run.report(experiments.report(scores, compared, observed, path=report))
    return scores


def _issue(
    config: Config,
    uri: str,
    address: str,
    observed: xr.Dataset,
    tracking: Tracking,
    out: Path,
) -> list[Path]:
    remote, provenance = experiments.opened(config, uri, tracking, endpoint=address)
    block = experiments.block(config, observed, split="test")
    candidates = base_times(observed, window_of(config), block)
    wetness = observed[config.variable.name].sel(time=candidates).mean(("y", "x"))
    wettest = candidates[int(wetness.values.argmax())]
    return issue(
        remote,
        observed,
        base_times=pd.DatetimeIndex([wettest]),
        lead_times=config.window.lead_times,
        out=out,
        provenance=provenance,
    )
