"""Labels: to which class a frame belongs, as the CF flag coordinate ``label(time)``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

LABEL = "label"
UNKNOWN = -1  # of a frame without a label


def with_labels(observed: xr.Dataset, labels: Any, classes: Sequence[str]) -> xr.Dataset:
    """Give observations with the label of each frame.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``.
    labels : (time,)
        Place of each frame's class in `classes`, or `UNKNOWN`; may be lazy.
    classes
        Names without blanks.

    Raises
    ------
    ValueError
        If the names are fewer than two, not all different, or hold blanks.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> labelled = with_labels(synthesise(hours=1, size=8), np.arange(7) % 2, ["calm", "stormy"])
    >>> labelled["label"].attrs["flag_meanings"]
    'calm stormy'
    """
    if (
        len(set(classes)) < 2
        or len(set(classes)) < len(classes)
        or any(len(name.split()) != 1 for name in classes)
    ):
        raise ValueError(f"classes are two or more different words; received {list(classes)}")
    attributes = {
        "long_name": "class of the frame",
        "flag_values": np.arange(len(classes), dtype=np.int16),
        "flag_meanings": " ".join(classes),
    }
    flags = xr.Variable("time", labels, attributes).astype(np.int16)
    return observed.assign_coords({LABEL: flags})


def classes_of(observed: xr.Dataset) -> tuple[str, ...]:
    """Give the names of the classes in the order of their flags; none without labels.

    Raises
    ------
    ValueError
        If labels do not say what their flags mean.
    """
    if LABEL not in observed.coords:
        return ()
    attributes = observed[LABEL].attrs
    names = str(attributes.get("flag_meanings", "")).split()
    values = np.atleast_1d(attributes.get("flag_values", ()))
    if observed[LABEL].dims != ("time",) or len(names) < 2 or len(values) != len(names):
        raise ValueError(
            f"{LABEL!r} must have the dims ('time',) and, as CF has it, as many flag_values as "
            f"flag_meanings; it has {observed[LABEL].dims}, {list(values)} and {names}"
        )
    return tuple(names)


def labels_of(observed: xr.Dataset) -> np.ndarray:
    """Give the place of each frame's class in `classes_of`, `UNKNOWN` where it has none.

    Lazy labels are computed.

    Parameters
    ----------
    observed
        With labels.
    """
    classes = classes_of(observed)
    flags = np.asarray(observed[LABEL].values, float)  # a fill value was decoded to NaN
    known = np.asarray(observed[LABEL].attrs["flag_values"], float)
    same = flags[:, None] == known[None, : len(classes)]
    return np.where(same.any(axis=1), same.argmax(axis=1), UNKNOWN)
