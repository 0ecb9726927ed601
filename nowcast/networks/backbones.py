"""Networks of `keras.applications` as a front end: built by name, their weights from a local file.

They were made for pictures of three colours with values from 0 to 255. Fields are adapted so:

- the values, on the network's scale, times 255; 1 is full brightness, and more is brighter still;
- three times as many channels, all the same: a grey picture;
- the application's own ``preprocess_input``, unless it does this by layers of its own;
- each pixel repeated along y and x, by the smallest whole factor that gives the application the
  size it needs at least.

Nothing is ever downloaded.
"""

import difflib
import functools
import inspect
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUFFIX = ".h5"
BRIGHTEST = 255.0  # of the pictures for which the applications were made


def names() -> list[str]:
    """Give the names of all networks of the installed `keras.applications`."""
    import keras

    return sorted(
        name for name, found in vars(keras.applications).items() if inspect.isfunction(found)
    )


def backbone(name: str, *, grid: tuple[int, int], alpha: float = 0.0) -> Any:
    """Build a network of `keras.applications` for fields, without its top, weights at random.

    Parameters
    ----------
    name
        One of `names`.
    grid : (y, x)
        Pixels.
    alpha
        Width, of an application that has several; 0: its own.

    Returns
    -------
    keras.Model
        ``(batch, y, x, 1)``, values on the network's scale, to ``(batch, y', x', channel)``.
        Its last layer is the application.

    Raises
    ------
    ValueError
        If there is no such application, or it cannot be built so.
    """
    import keras
    from keras import layers, ops

    application = _application(name, alpha)
    factor = -(-_least_side(application) // min(grid))
    values = keras.Input((*grid, 1))
    grey = ops.repeat(values * BRIGHTEST, 3, axis=-1)
    picture = layers.UpSampling2D(factor)(_module(name).preprocess_input(grey))
    try:
        network = application(input_shape=picture.shape[1:])
    except ValueError as error:
        raise ValueError(f"backbone {name!r} cannot be built for {grid} pixels: {error}") from error
    return keras.Model(values, network(picture), name="backbone")


def load_weights(backbone: Any, path: str, *, name: str) -> None:
    """Read the application's weights from a local file into a backbone.

    Parameters
    ----------
    backbone
        As `backbone` built it.
    path
        File that ``save_weights`` of the application without its top wrote, or that Keras offers
        for it (``..._notop.h5``). It is HDF5: nothing in it is code, and nothing is unpickled.
    name
        Of the application.

    Raises
    ------
    ValueError
        If the file is absent, is no HDF5, or holds other weights than this application's.
    """
    import h5py

    application = backbone.layers[-1]
    if not Path(path).is_file():
        raise ValueError(
            f"backbone_weights={path!r} is no file; give the weights of {name} on this machine, or "
            "leave it out and train the backbone from the start"
        )
    if not h5py.is_hdf5(path):
        raise ValueError(
            f"{path} is no HDF5 file, so no weights of Keras; save those of {name} with "
            "save_weights"
        )
    held, needed = _shapes_in(path), [tuple(weight.shape) for weight in application.weights]
    others = f"{path} holds {_summary(held)}; {name} as it is set needs {_summary(needed)}"
    if Counter(held) != Counter(needed):
        raise ValueError(
            f"{others}; set backbone and backbone_alpha to what the file was saved from, without "
            "its top, or give another file"
        )
    try:
        application.load_weights(path)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{others}, in another order: {error}") from error


def _application(name: str, alpha: float) -> Callable[..., Any]:
    """Give what builds an application without its top, for an ``input_shape``."""
    import keras

    if name not in names():
        close = difflib.get_close_matches(name.lower(), [known.lower() for known in names()], 5)
        near = [known for known in names() if known.lower() in close] or names()
        raise ValueError(
            f"unknown backbone {name!r}; keras.applications of Keras {keras.__version__} has "
            f"{', '.join(near)}"
        )
    function = getattr(keras.applications, name)
    options = {"alpha": alpha} if alpha else {}
    if alpha and "alpha" not in inspect.signature(function).parameters:
        raise ValueError(
            f"backbone {name!r} comes in one width; received backbone_alpha={alpha:g}; leave it out"
        )
    return functools.partial(function, include_top=False, weights=None, **options)


def _module(name: str) -> Any:
    import keras

    return inspect.getmodule(getattr(keras.applications, name))


def _least_side(application: Callable[..., Any]) -> int:
    """Give the least side of a picture that an application takes, as it says itself."""
    try:
        application(input_shape=(1, 1, 3))
    except ValueError as error:
        said = re.search(r"at least (\d+)x", str(error))
        if said:
            return int(said[1])
        raise
    return 1


def _shapes_in(path: str) -> list[tuple[int, ...]]:
    """Give the shapes of all weights in a file, without an optimiser's and without seeds."""
    import h5py

    shapes: list[tuple[int, ...]] = []

    def note(name: str, item: Any) -> None:
        other = name.startswith("optimizer") or "seed_generator" in name
        if isinstance(item, h5py.Dataset) and not other:
            shapes.append(tuple(item.shape))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(note)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {error}; fetch or save it again") from error
    return shapes


def _summary(shapes: list[tuple[int, ...]]) -> str:
    values = sum(math.prod(shape) for shape in shapes)
    return f"{len(shapes)} arrays of {values:,} values in all"
