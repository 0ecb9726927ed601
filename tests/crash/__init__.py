"""Proof that the archive outlives kill -9 at any call, and full disks.

`crash_points.c` is preloaded into workers, which fork one process per crash point; `scenario` says
what is ingested and what must hold afterwards; `workers` starts, kills and reaps; `proofs` counts.
"""
