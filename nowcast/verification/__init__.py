"""Comparing nowcasts with what was observed, on identical cases for every nowcaster."""

from nowcast.verification.cases import case_times
from nowcast.verification.combination import combine
from nowcast.verification.comparison import save_scores, standard_measures, verify
from nowcast.verification.protocol import Protocol, ProtocolError

__all__ = [
    "Protocol",
    "ProtocolError",
    "case_times",
    "combine",
    "save_scores",
    "standard_measures",
    "verify",
]
