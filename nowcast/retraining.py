"""From observations to a calibrated nowcaster, as those that come with nowcast were made.

One command, unattended: a training that was killed goes on from its last epoch, and one that was
done is not done again.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from nowcast import experiments
from nowcast.calibration import MOST_BIAS
from nowcast.config import Config, ConfigError
from nowcast.durable import replacing
from nowcast.networks import sees_motion, settings_of
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.tracking import Tracking
from nowcast.training import checkpoint_of, prepare, train

HELD_OUT = "validation+test"  # blocks of the settings; the weights have seen neither
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retrained:
    """What was made.

    Parameters
    ----------
    nowcaster
        Calibrated.
    folder
        Where it is saved.
    trained
        Where it is saved as it was before the calibration.
    """

    nowcaster: NeuralNowcaster
    folder: Path
    trained: Path


def retrain(
    config: Config,
    observed: xr.Dataset,
    *,
    tracking: Tracking,
    out: Path,
    split: str = HELD_OUT,
    most_bias: float = MOST_BIAS,
    extrapolated_from: float | None = None,
    start: NeuralNowcaster | None = None,
    verbose: int = 1,
) -> Retrained:
    """Train, calibrate on what the training did not see, and save.

    Parameters
    ----------
    config
        Of the experiment, with a head ``exceedance``.
    observed
        That keep the convention.
    tracking
        Where runs and models go.
    out
        Folder of the nowcaster, replaced if it is there.
    split
        Block or blocks of the settings on which calibration and decision levels are fitted.
    most_bias
        Frequency bias of the field at most, on these.
    extrapolated_from
        Threshold from which on the field is that of extrapolation; see
        `nowcast.nowcasters.neural.calibrate`.
    start
        Whose weights the training goes on from.
    verbose
        See `nowcast.training.train`.

    Raises
    ------
    ConfigError
        If the settings' head gives no probabilities.
    """
    if config.network.head != "exceedance":
        raise ConfigError(
            f"probabilities are calibrated, and network.head={config.network.head!r} gives none; "
            "set network.head=exceedance, or use `nowcast train`"
        )
    if extrapolated_from not in (None, *config.network.levels):
        raise ConfigError(
            f"what is left to extrapolation begins at one of network.levels={config.network.levels}"
            f"; received {extrapolated_from}"
        )
    network = settings_of(config.network.name, config.network.settings)
    if extrapolated_from is not None and not sees_motion(network):
        raise ConfigError(
            f"nothing can be left to extrapolation from {extrapolated_from} on: the network "
            f"{config.network.name!r} sees no motion; use one that does, such as lagrangian"
        )
    if "train" in split.split("+"):
        _LOG.warning("what was trained on is calibrated on too: probabilities will be too sure")
    block = experiments.block(config, observed, split=split)
    prepared = prepare(config, observed, work=tracking.work)
    checkpoint = checkpoint_of(config, prepared, work=tracking.work, start=start)
    done = tracking.work / "retrained" / f"{checkpoint.path.stem}.json"
    folder = _trained(done)
    if folder is None:
        made = train(config, observed, tracking=tracking, start=start, verbose=verbose)
        folder = made.folder
        with replacing(done) as temporary:
            temporary.write_text(json.dumps({"folder": str(folder)}))
    nowcaster = experiments.calibrated(
        config,
        str(folder),
        observed,
        tracking,
        block=block,
        most_bias=most_bias,
        extrapolated_from=extrapolated_from,
    )
    nowcaster.save(out)
    return Retrained(nowcaster, out, folder)


def _trained(done: Path) -> Path | None:
    """Give where the training of before is saved, if it is done and whole."""
    if not done.is_file():
        return None
    try:
        folder = Path(json.loads(done.read_text())["folder"])
        NeuralNowcaster.load(folder)
    except (ValueError, KeyError, OSError) as error:
        _LOG.warning("it is trained anew: %s", error)
        return None
    _LOG.warning("the training is done already: %s", folder)
    return folder
