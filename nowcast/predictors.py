"""Trained networks that see frames and give a series or a label instead of frames.

A nowcaster gives fields; a network with the head ``series`` gives the rain of an area or of points
at each lead time, and one with the head ``classes`` the probability of each class. They share with
nowcasters how they are trained, saved, registered and scored, and these promises: no frame after
the base time is used, and what cannot be told is missing.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import grid_id
from nowcast.data.labels import LABEL
from nowcast.data.series import LEAST_OBSERVED, names_of, pixels_of
from nowcast.networks import load_keras
from nowcast.networks.heads import SEQUENCE_HEADS
from nowcast.nowcasters.neural import NeuralNowcaster, windows_of
from nowcast.nowcasters.saved import (
    NeuralSettings,
    load_network,
    load_postprocessing,
    network_inputs,
    network_with,
    save_network,
)

PROBABILITY = "probability"
FREQUENCIES = "label_frequencies"  # in the provenance: of the classes in the training block, JSON
_BASE_TIME = {"standard_name": "forecast_reference_time", "long_name": "time of the last frame"}
_LEAD_TIME = {"standard_name": "forecast_period", "long_name": "valid time minus base time"}
_VALID_TIME = {"standard_name": "time", "long_name": "time the value is about"}


class SequencePredictor:
    """A network with its weights that predicts a series or a label from the last frames.

    Where an input frame shows less than half of the grid, what is predicted is missing.

    Parameters
    ----------
    settings
        See `NeuralSettings`; its head is ``series`` or ``classes``.
    weights
        As the Keras network gives them, in its order.
    sha256
        Of the weights file, where it was saved.

    Raises
    ------
    ValueError
        If the head is one of frames.
    """

    def __init__(
        self, settings: NeuralSettings, weights: list[np.ndarray], *, sha256: str = ""
    ) -> None:
        if settings.head.kind not in SEQUENCE_HEADS:
            raise ValueError(
                f"a predictor has a head {' or '.join(SEQUENCE_HEADS)}; the head "
                f"{settings.head.kind!r} gives frames, which a NeuralNowcaster issues"
            )
        self.settings = settings
        self.sha256 = sha256
        self.input_frames = settings.window.input_frames
        self.step: pd.Timedelta | None = settings.window.step
        self.weights = weights
        self._network = functools.lru_cache(maxsize=1)(self._build)

    def predict(self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex) -> xr.Dataset:
        """Give what the network predicts from each base time.

        Parameters
        ----------
        observed
            Dims ``(time, y, x)``, on the grid that the network was trained on.
        base_times
            UTC; each the time of a frame.

        Returns
        -------
        Dataset
            Of a series its variable in physical units, dims ``(base_time, lead_time, point)``,
            with ``valid_time(base_time, lead_time)``; of classes
            ``probability(base_time, label)``, which add up to 1.

        Raises
        ------
        ValueError
            If the grid does not fit, a base time is not in the data, one of its input frames is
            absent, or nothing at all was observed in it.
        """
        self._check_grid(observed)
        values = self.forecast(windows_of(self.settings, observed, base_times))
        return self._as_dataset(values, base_times)

    def forecast(self, frames: np.ndarray) -> np.ndarray:
        """Give what the network predicts from bare arrays, as its endpoint needs it.

        Parameters
        ----------
        frames : (batch, frame, y, x)
            The input frames in physical units, NaN where not observed.

        Returns
        -------
        predicted : (batch, lead frame, point) or (batch, label)
            In physical units, or probabilities; NaN where a frame shows too little.

        Raises
        ------
        ValueError
            If there are other frames or pixels than the network was trained with.
        """
        settings, head = self.settings, self.settings.head
        expected = (settings.window.input_frames, *settings.grid)
        if frames.shape[1:] != expected:
            raise ValueError(
                f"this predictor needs frames of the shape {expected}; received {frames.shape[1:]}"
            )
        raw = self._network(settings.padded(settings.grid))(
            network_inputs(settings, frames), training=False
        )
        values: np.ndarray = load_keras().ops.convert_to_numpy(head.values(raw))
        if head.kind == "series":
            low, high = settings.variable.valid_min, settings.variable.valid_max
            values = np.clip(settings.transform.inverse(values), low, high)
        if np.isnan(values).any():  # it would pass for "not observed"
            raise ValueError(f"network {settings.network!r} gave NaN; train it again")
        seen = (np.isfinite(frames).mean(axis=(2, 3)) >= LEAST_OBSERVED).all(axis=1)
        values = values.astype(np.float32)  # and no longer the backend's own memory
        values[~seen] = np.nan
        return values

    def save(self, folder: Path | str) -> Path:
        """Write settings, weights and their hashes to a folder, whole or not at all."""
        self.sha256 = save_network(folder, self.settings, self._network)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> "SequencePredictor":
        """Read a folder that `save` wrote. No code from the folder runs, nothing is unpickled.

        Raises
        ------
        ValueError
            If a file is absent, changed since it was saved, or does not fit.
        """
        settings, weights, digest = load_network(folder)
        return cls(settings, weights, sha256=digest)

    def _build(self, grid: tuple[int, int]) -> Any:
        return network_with(self.settings, self.weights, grid)

    def _check_grid(self, observed: xr.Dataset) -> None:
        settings, grid = self.settings, (observed.sizes["y"], observed.sizes["x"])
        if grid != settings.grid:
            raise ValueError(
                f"this predictor of {settings.head.kind} takes the whole grid of {settings.grid} "
                f"pixels on which it was trained; the observations have {grid}; select or coarsen "
                "them to it, or train on them"
            )
        pixels_of(settings.points, y=observed["y"].values, x=observed["x"].values)
        trained_on = settings.provenance.get("grid_id", "")
        if settings.points and trained_on != grid_id(observed):
            raise ValueError(
                f"this predictor gives the series of points on the grid {trained_on}; the "
                f"observations lie on {grid_id(observed)}; train on them"
            )

    def _as_dataset(self, values: np.ndarray, base_times: pd.DatetimeIndex) -> xr.Dataset:
        settings, head = self.settings, self.settings.head
        times = {"base_time": ("base_time", base_times, _BASE_TIME)}
        if head.kind == "classes":
            attributes = {"long_name": "probability of each class", "units": "1"}
            return xr.Dataset(
                {PROBABILITY: (("base_time", LABEL), values, attributes)},
                coords={**times, LABEL: list(head.labels)},
            )
        leads = settings.window.offsets[settings.window.input_frames :]
        valid = base_times.to_numpy()[:, None] + leads.to_numpy()[None, :]
        places = {
            axis: (
                "point",
                [point[at] for point in settings.points],
                {"units": settings.grid_units},
            )
            for at, axis in enumerate(("y", "x"))
            if settings.points
        }
        attributes = {
            key: value
            for key, value in settings.variable.attributes.items()
            if key != "grid_mapping"
        }
        return xr.Dataset(
            {settings.variable.name: (("base_time", "lead_time", "point"), values, attributes)},
            coords={
                **times,
                "lead_time": ("lead_time", leads, _LEAD_TIME),
                "valid_time": (("base_time", "lead_time"), valid, _VALID_TIME),
                "point": list(names_of(settings.points)),
                **places,
            },
        )


def open_trained(folder: Path | str) -> NeuralNowcaster | SequencePredictor:
    """Open whatever a training saved: a nowcaster, or a predictor of a series or a label.

    Raises
    ------
    ValueError
        If the folder holds neither, whole.
    """
    settings, weights, digest = load_network(folder)
    if settings.head.kind in SEQUENCE_HEADS:
        return SequencePredictor(settings, weights, sha256=digest)
    postprocessing = load_postprocessing(folder)
    return NeuralNowcaster(settings, weights, sha256=digest, postprocessing=postprocessing)
