"""Readers that do what hostile files make libraries do; an entry point of the tests alone."""

import ctypes
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr

CELL = (8, 9)


def read(path):
    """Do what the file says; then give two frames, and a quality index."""
    word, _, argument = Path(path).read_text().partition(" ")
    _DEEDS[word](argument)
    return _observations(_DEEDS[word](argument) if word == "shape" else (2, *CELL))


def recognises(start, _path):
    return start.split(b" ")[0].decode("latin-1") in _DEEDS


def _observations(shape):
    """Give frames as NumPy arrays, as some readers do."""
    values = np.arange(np.prod(shape), dtype="f4").reshape(shape) / 100
    values[0, 0, 0] = np.nan
    rain = {"units": "mm h-1", "grid_mapping": "crs", "ancillary_variables": "quality"}
    quality = {"units": "1", "grid_mapping": "crs"}
    mapping = {"grid_mapping_name": "latitude_longitude"}
    dims = ("time", "y", "x")
    return xr.Dataset(
        {"rain_rate": (dims, values, rain), "quality": (dims, values * 0 + 0.5, quality)},
        {
            "time": np.datetime64("2024-06-01", "ns")
            + np.arange(shape[0]) * np.timedelta64(5, "m"),
            "y": ("y", np.arange(float(shape[1])), {"units": "degrees_north"}),
            "x": ("x", np.arange(float(shape[2])), {"units": "degrees_east"}),
            "crs": ((), 0, mapping),
        },
        {"source": "hostile"},
    )


def _spin(_argument):
    while True:
        pass


def _spin_in_c(_argument):
    re.match("(a+)+$", "a" * 64 + "b")  # holds the interpreter for years


def _allocate(_argument):
    taken = []
    while True:
        taken.append(np.empty(50_000_000))


def _print(argument):
    for _ in range(int(argument)):
        print("x" * 1000)
        print("x" * 1000, file=sys.stderr)
    sys.stdout.flush()
    os.write(1, b"\xff" * 100_000)
    os.write(2, b"\xff" * 100_000)


def _write(argument):
    with Path(argument).open("wb") as file:
        file.write(b"x" * 1000)


def _fork(argument):
    if os.fork() == 0:
        time.sleep(float(argument))
        os._exit(0)


def _fork_and_crash(argument):
    _fork(argument)
    os.kill(os.getpid(), signal.SIGSEGV)


def _lie(argument):
    """Write to the pipe of the answers, which a turned library could find."""
    content = argument.encode() or os.urandom(1000)
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, len(content).to_bytes(8, "little") + content)
        except OSError:
            continue


def _open_many(_argument):
    opened = [socket.socket() for _ in range(1000)]
    raise AssertionError(f"{len(opened)} files are open")


_DEEDS = {
    "nothing": lambda _argument: None,
    "shape": lambda argument: tuple(map(int, argument.split("x"))),
    "sleep": lambda argument: time.sleep(float(argument)),
    "spin": _spin,
    "spin_in_c": _spin_in_c,
    "allocate": _allocate,
    "segfault": lambda _argument: ctypes.string_at(0),
    "abort": lambda _argument: os.abort(),
    "exit": lambda argument: sys.exit(int(argument)),
    "exit_at_once": lambda argument: os._exit(int(argument)),
    "print": _print,
    "write": _write,
    "fork": _fork,
    "fork_and_crash": _fork_and_crash,
    "lie": _lie,
    "open_many": _open_many,
    "raise": lambda argument: {}[argument],
    "import": lambda argument: __import__(argument),
    "close_all": lambda _argument: os.closerange(0, 64),
    "read_input": lambda _argument: sys.stdin.read(),
}
