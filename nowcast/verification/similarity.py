"""Structural similarity, for comparison with the benchmarks that report it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from nowcast.verification.batches import Batch, defined_by

DEFINITIONS = {"ssim": ("structural similarity", "1", "doi:10.1109/TIP.2003.819861")}
WIDTH = 7  # pixels to a side of the window: scikit-image's default


@dataclass(frozen=True)
class Similarity:
    """Structural similarity (SSIM): mean over fields, as scikit-image computes it.

    By windows of 7 x 7 pixels that weigh alike, within the grid: the defaults of scikit-image, as
    in `nowcast.reproductions`. The figures of papers differ by window and range, and dry pixels
    are alike, so it is for comparison with a benchmark of the same data, and no measure of skill.
    Two dry fields are alike: 1.

    The rule for missing pixels: the mean over a field is of the windows that count as a whole. A
    field without any is left out, and without any field the score is NaN.

    Parameters
    ----------
    value_range
        Largest minus smallest possible value, in the units of what is forecast.

    Raises
    ------
    ValueError
        If the range is not above 0.

    Examples
    --------
    >>> dims = ("base_time", "lead_time", "y", "x")
    >>> observed = xr.DataArray(np.eye(8)[None, None], dims=dims)
    >>> measure = Similarity(value_range=1.0)
    >>> sums = measure.sums(Batch(observed, observed, xr.Dataset()))
    >>> measure.scores(sums.sum("base_time"))["ssim"].item()
    1.0
    """

    value_range: float

    def __post_init__(self) -> None:
        if not self.value_range > 0:
            raise ValueError(f"value_range must be above 0; received {self.value_range}")

    name = "similarity"
    gridded = True

    def sums(self, batch: Batch) -> xr.Dataset:
        """Give the similarity of each field, and whether it has one.

        Returns
        -------
        Dataset
            ``similarity`` and ``fields`` by ``(base_time, lead_time)``.
        """
        whole: np.ndarray = batch.of_observed("whole_windows", lambda: _whole(batch.observed))
        compared = whole.any((2, 3))
        similar = np.zeros(compared.shape)
        forecast, observed = (  # no window that is told of has a missing pixel
            field.fillna(0.0).values.astype(np.float64)
            for field in (batch.forecast, batch.observed)
        )
        for at in zip(*np.nonzero(compared), strict=True):
            similar[at] = self._by_window(forecast[at], observed[at])[whole[at]].mean()
        dims = ("base_time", "lead_time")
        return xr.Dataset(
            {"similarity": (dims, similar), "fields": (dims, compared.astype(np.int64))},
            {name: batch.observed[name] for name in dims},
        )

    def scores(self, total: xr.Dataset) -> xr.Dataset:
        """Give ``ssim``."""
        ssim = total["similarity"] / total["fields"]  # 0 / 0, so NaN, without any field
        return defined_by(DEFINITIONS, xr.Dataset({"ssim": ssim}))

    def _by_window(self, forecast: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Give the similarity of the windows around each pixel of two frames."""
        from skimage.metrics import structural_similarity

        similarity: Any = structural_similarity  # which is not typed
        _, by_window = similarity(
            forecast, observed, data_range=self.value_range, win_size=WIDTH, full=True
        )
        return np.asarray(by_window)


def _whole(observed: xr.DataArray) -> np.ndarray:
    """Give around which pixels a window lies within the grid and counts as a whole."""
    from scipy.ndimage import minimum_filter

    counted = observed.notnull().values
    size = (1, 1, WIDTH, WIDTH)
    return np.asarray(minimum_filter(counted, size, mode="constant", cval=False))
