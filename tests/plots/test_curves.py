import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from nowcast import plots
from nowcast.plots import curves, style


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def is_colour(picture, colour):
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return (picture == wanted).all(axis=-1)


def score_table(nowcasters=("persistence", "extrapolation", "convlstm")):
    lead_times = pd.to_timedelta([10, 20, 30], unit="min")
    fall = np.linspace(0.9, 0.3, 3) * np.linspace(0.6, 1.0, len(nowcasters))[:, None]
    by_threshold = np.stack([fall, fall / 2], axis=1)
    by_threshold[0, 1, 2] = np.nan  # a score that is not defined
    categorical = {
        name: (("nowcaster", "threshold", "lead_time"), by_threshold)
        for name in ("csi", "pod", "far", "frequency_bias")
    }
    continuous = {
        name: (("nowcaster", "lead_time"), 1 - fall, {"units": "mm h-1"})
        for name in ("mae", "rmse", "me")
    }
    thresholds = ("threshold", [1.0, 5.0], {"units": "mm h-1"})
    return xr.Dataset(
        {**categorical, **continuous},
        coords={
            "nowcaster": list(nowcasters),
            "threshold": thresholds,
            "lead_time": lead_times,
        },
    )


def test_score_curves_draw_a_line_per_nowcaster_and_a_plot_per_score(tmp_path):
    figure = curves._draw_scores(score_table())
    drawn = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title() for axes in drawn] == [
        "CSI, ≥ 1 mm h⁻¹", "POD, ≥ 1 mm h⁻¹", "FAR, ≥ 1 mm h⁻¹", "frequency bias, ≥ 1 mm h⁻¹",
        "CSI, ≥ 5 mm h⁻¹", "POD, ≥ 5 mm h⁻¹", "FAR, ≥ 5 mm h⁻¹", "frequency bias, ≥ 5 mm h⁻¹",
        "MAE (mm h⁻¹)", "RMSE (mm h⁻¹)", "mean error (mm h⁻¹)",
    ]  # fmt: skip
    assert list(drawn[0].lines[0].get_xdata()) == [10.0, 20.0, 30.0]
    assert [line.get_label() for line in drawn[0].lines] == [
        "persistence", "extrapolation", "convlstm",
    ]  # fmt: skip
    path = plots.score_curves(score_table(), path=tmp_path / "scores.png")
    for colour in style.LINE_COLOURS[:3]:
        assert is_colour(pixels(path), colour).any()


def test_score_curves_tell_twenty_nowcasters_apart():
    figure = curves._draw_scores(score_table([f"network-{n}" for n in range(20)]))
    lines = figure.axes[0].lines
    styles = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(styles) == 20


def test_score_curves_take_the_scores_that_are_there(tmp_path):
    path = plots.score_curves(score_table()[["rmse"]], path=tmp_path / "rmse.png")
    assert Image.open(path).format == "PNG"
    with pytest.raises(ValueError, match=r"none of the scores .* the dataset has \['fss'\]"):
        plots.score_curves(score_table()[["csi"]].rename(csi="fss"), path=tmp_path / "none.png")


def test_matplotlib_is_loaded_late_and_pyplot_never():
    code = (
        "import sys, nowcast.plots as plots, pandas as pd, xarray as xr\n"
        "assert 'matplotlib' not in sys.modules\n"
        "scores = xr.Dataset({'mae': (('nowcaster', 'lead_time'), [[1.0]])}, coords={'nowcaster':"
        " ['persistence'], 'lead_time': pd.to_timedelta([10], unit='min')})\n"
        "plots.curves._draw_scores(scores)\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
