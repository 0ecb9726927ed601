"""Comparing nowcasts with what was observed, on identical cases for every nowcaster."""

from nowcast.verification.cases import Protocol, case_times, save_scores, verify

__all__ = ["Protocol", "case_times", "save_scores", "verify"]
