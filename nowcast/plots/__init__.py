"""Figures, as files that are whole or not there: maps, learning curves, and scores.

Nothing here touches matplotlib's global state, so that a server and a thread may draw.
"""

from nowcast.plots.curves import learning_curve, score_curves
from nowcast.plots.maps import animation, panel

__all__ = ["animation", "learning_curve", "panel", "score_curves"]
