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
from nowcast.config import Config, ConfigError
from nowcast.decisions import Decisions
from nowcast.durable import replacing
from nowcast.networks import sees_motion, settings_of
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.nowcasters.saved import check_replaceable
from nowcast.tracking import Tracking
from nowcast.training import check_trainable, checkpoint_of, prepare, train

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
    decisions: Decisions = Decisions(),
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
        Folder of the nowcaster, replaced if there is one.
    split
        Block or blocks of the settings on which calibration and decision levels are fitted.
    decisions
        How the field is decided.
    start
        Whose weights the training goes on from.
    verbose
        See `nowcast.training.train`.

    Raises
    ------
    ConfigError
        If the settings' head gives no probabilities.
    ValueError
        If the network cannot give what decisions ask for, or something else would be replaced.
    """
    if config.network.head != "exceedance":
        raise ConfigError(
            f"probabilities are calibrated, and network.head={config.network.head!r} gives none; "
            "set network.head=exceedance, or use `nowcast train`"
        )
    network = settings_of(config.network.name, config.network.settings)
    decisions.check(config.network.name, config.network.levels, motion=sees_motion(network))
    check_replaceable(out)
    if "train" in split.split("+"):
        _LOG.warning("what was trained on is calibrated on too: probabilities will be too sure")
    block = experiments.block(config, observed, split=split)
    check_trainable(config, observed, start=start)
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
        decisions=decisions,
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
