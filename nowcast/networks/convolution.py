"""The convolution that a recurrent layer repeats at every step, made cheap on a processor.

A convolution with stride 1 of tiles of 4 x 4 pixels is a product of polynomials, and can be taken
at a few points instead of coefficient by coefficient (Toom and Cook; Winograd): a 5 x 5 kernel then
needs 64 multiplications per tile and pair of channels instead of 400, a 3 x 3 kernel 36 instead of
144. What remains are matrix products, one per point, and additions. The kernel is brought to the
points once for all steps.

References
----------
Lavin and Gray (2016), Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

TILE = 4  # pixels of the output along each side of a tile
# Points at which the polynomials are taken, by side of the kernel, and infinity: dyadic, so that
# the transforms are exact, and near 1, so that little is lost when large numbers cancel.
POINTS = {3: (0.0, 1.0, -1.0, 2.0, -2.0), 5: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)}
LARGEST = 64  # pixels along a side: the transforms of larger fields cost too much
FEWEST = 512  # products that are added for one number of the output: of fewer, additions prevail
LARGE = 2**18  # numbers of a field: of more, all gates at once leave the processor's caches
Convolution = Callable[[Any], Any]


def repeated(
    kernel: Any,
    *,
    grid: tuple[Any, Any] | None = None,
    data_format: str = "channels_last",
) -> Convolution:
    """Give the convolution with a kernel, to be used many times; stride 1, zeros around the field.

    Parameters
    ----------
    kernel : (y, x, channel in, channel out)
    grid
        Height and width; None where they are not known. Where they are, tiles are used if they pay:
        on a processor (cuDNN does it better on a GPU), with 32-bit floats, channels last, kernels
        of 3 x 3 or 5 x 5 pixels with `FEWEST` or more products, sides of `TILE` to `LARGEST`
        pixels. The numbers differ by rounding alone. The kernel is brought to the points here, so
        this is worth it for a convolution that is used several times or for many fields.
    data_format
        As in Keras.

    Returns
    -------
    callable
        Of fields, (batch, y, x, channel).
    """
    if grid is not None and _pays(kernel, grid) and data_format == "channels_last":
        return _tiled(kernel, grid)
    return lambda fields: ops.conv(fields, kernel, padding="same", data_format=data_format)


def pays_apart(kernel: Any, grid: tuple[Any, Any]) -> bool:
    """Tell whether a recurrent layer had better convolve gate by gate than all gates at once.

    So it is on a processor, for fields of `LARGE` or more numbers that `repeated` does not convolve
    by tiles: to write the gates next to each other, and to split them again, costs more than that
    each convolution reads its input for itself.

    Parameters
    ----------
    kernel : (y, x, channel in, channel out)
        Of all gates.
    grid
        Height and width, None where they are not known.
    """
    if None in grid or _pays(kernel, grid):
        return False
    return bool(grid[0] * grid[1] * kernel.shape[-1] >= LARGE and _on_processor())


def _pays(kernel: Any, grid: tuple[Any, Any]) -> bool:
    height, width, channels, _ = kernel.shape
    return (
        height == width
        and height in POINTS
        and height * width * channels >= FEWEST
        and all(side is not None and TILE <= side <= LARGEST for side in grid)
        and keras.backend.standardize_dtype(kernel.dtype) == "float32"
        and _on_processor()
    )


@functools.cache
def _on_processor() -> bool:
    if keras.backend.backend() == "torch":
        return bool(ops.zeros(1).device.type == "cpu")
    return bool(keras.distribution.list_devices()[0].startswith("cpu"))


def _tiled(kernel: Any, grid: tuple[int, int]) -> Convolution:
    size, _, channels, outputs = kernel.shape
    to_points, kernel_to_points, from_points = _transforms(size)
    points = len(to_points)
    tall, wide = (-(-side // TILE) for side in grid)
    along_y, along_x = (_of_tiles(to_points, side, size) for side in grid)
    back = np.kron(from_points, from_points).astype("float32")
    at_points = ops.matmul(kernel_to_points, ops.reshape(kernel, (size, -1)))
    at_points = ops.matmul(kernel_to_points, ops.reshape(at_points, (points, size, -1)))
    at_points = ops.reshape(at_points, (points**2, channels, outputs))

    def convolve(fields: Any) -> Any:
        rows = ops.matmul(along_y, ops.reshape(fields, (-1, grid[0], grid[1] * channels)))
        tiles = ops.matmul(along_x, ops.reshape(rows, (-1, grid[1], channels)))
        tiles = ops.reshape(tiles, (-1, points, tall, points, wide * channels))
        tiles = ops.reshape(ops.transpose(tiles, (1, 3, 0, 2, 4)), (points**2, -1, channels))
        products = ops.matmul(back, ops.reshape(ops.matmul(tiles, at_points), (points**2, -1)))
        products = ops.reshape(products, (TILE, TILE, -1, tall, wide, outputs))
        whole = ops.transpose(products, (2, 3, 0, 4, 1, 5))
        whole = ops.reshape(whole, (-1, TILE * tall, TILE * wide, outputs))
        exact = (TILE * tall, TILE * wide) == grid
        return whole if exact else whole[:, : grid[0], : grid[1]]

    return convolve


@functools.cache
def _transforms(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the matrices that take a tile's input, a kernel, and the products to where they belong.

    Along one axis: ``output = from_points @ ((kernel_to_points @ kernel) * (to_points @ input))``.
    """
    finite = np.array(POINTS[size])
    others = [np.delete(finite, index) for index in range(len(finite))]
    polynomials = [np.pad(np.poly(roots)[::-1], (0, 1)) for roots in others]
    to_points = np.array([*polynomials, np.poly(finite)[::-1]])
    scale = [np.prod(point - roots) for point, roots in zip(finite, others, strict=True)]
    kernel_to_points = np.vander(finite, size, increasing=True) / np.array(scale)[:, None]
    kernel_to_points = np.vstack([kernel_to_points, np.eye(size)[-1]])
    from_points = np.vstack([np.vander(finite, TILE, increasing=True), np.eye(TILE)[-1]]).T
    return to_points, kernel_to_points.astype("float32"), from_points


def _of_tiles(to_points: np.ndarray, side: int, size: int) -> np.ndarray:
    """Give `to_points` for all tiles along an axis at once, as (point and tile, pixel)."""
    points, tiles = len(to_points), -(-side // TILE)
    matrix = np.zeros((points, tiles, tiles * TILE + size - 1), "float32")
    for tile in range(tiles):
        matrix[:, tile, tile * TILE : tile * TILE + points] = to_points
    return matrix[:, :, size // 2 : size // 2 + side].reshape(points * tiles, side)
