"""HDF5 read with care: no link is followed, and nothing is taken in before its size is known."""

import math
from typing import Any

import numpy as np

MOST_PIXELS = 50_000_000  # of a frame or a chunk; one that claims more is refused unread
LONGEST_TEXT = 65_536  # bytes of an attribute


def find(group: Any, path: str) -> Any:
    """Give the group or dataset at a path, if the file holds it itself; None if there is none.

    Raises
    ------
    ValueError
        If a part of the path is a link, which could lead to another file.
    """
    import h5py

    found = group
    for part in path.split("/"):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{path!r} lies behind a link or in another file; none is followed")
        found = found[part]
    return found


def attribute(group: Any, name: str) -> str | float | None:
    """Give an attribute that is one text or one number; None if there is none.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if group is None or name not in group.attrs:
        return None
    stored = group.attrs.get_id(name)
    if stored.get_space().get_simple_extent_npoints() != 1:
        raise ValueError(f"{group.name} has an attribute {name!r} that is not one text or number")
    if stored.get_storage_size() > LONGEST_TEXT:
        raise ValueError(
            f"{group.name} has an attribute {name!r} of more than {LONGEST_TEXT} bytes"
        )
    value = np.ravel(group.attrs[name])[0]
    if isinstance(value, bytes):
        value = value.decode("ascii", "backslashreplace")
    if isinstance(value, str):
        return str(value).strip("\0 ")
    if np.asarray(value).dtype.kind in "iufb":
        return float(value)
    raise ValueError(f"{group.name} has an attribute {name!r} that is neither text nor number")


def check_stored(dataset: Any) -> None:
    """Refuse numbers that are not all in the file itself, or claim more memory than is right.

    HDF5 reads a block that was never written as its fill value, which would pass for dry.

    Raises
    ------
    ValueError
        With what is wrong.
    """
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None or 0 in dataset.shape:
        raise ValueError("there are no numbers where they belong")
    if dataset.dtype.kind not in "iuf":
        raise ValueError(f"{dataset.name} holds {dataset.dtype}, not numbers")
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} lies in another file, which is not followed")
    if dataset.chunks and math.prod(dataset.chunks) > MOST_PIXELS:
        raise ValueError(
            f"{dataset.name} claims chunks of {dataset.chunks}; {MOST_PIXELS:,} numbers is the "
            "limit"
        )
    if not is_complete(dataset):
        raise ValueError(f"{dataset.name} is incomplete: part of it was never written")


def is_complete(dataset: Any) -> bool:
    """Tell whether every block of a dataset was written."""
    if dataset.chunks is None:
        return bool(dataset.id.get_storage_size() == dataset.nbytes)
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    return bool(
        dataset.id.get_num_chunks() == math.prod(-(-side // chunk) for side, chunk in sides)
    )


def frame(dataset: Any, shape: tuple[int, int]) -> Any:
    """Give the numbers of one field, once they are known to be safe, complete and of this shape.

    Raises
    ------
    ValueError
        If they are not.
    """
    check_stored(dataset)
    if dataset.shape != shape:
        raise ValueError(f"{dataset.name} is {dataset.shape}, but {shape} pixels are declared")
    if math.prod(shape) > MOST_PIXELS:
        raise ValueError(f"{dataset.name} claims {shape} pixels; {MOST_PIXELS:,} is the limit")
    return dataset[...]
