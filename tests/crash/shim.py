"""The library that counts calls: how it is built, and how a process arms it for itself."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

_SOURCE = Path(__file__).with_name("crash_points.c")


def why_not() -> str:
    """Give the reason why crash points cannot be tested here; empty if they can."""
    if sys.platform != "linux":
        return "crash points need Linux"
    if not shutil.which("gcc"):
        return "crash points need gcc, which is not installed"
    return ""


def build_shim(folder: Path) -> Path:
    """Compile the library that counts calls."""
    library = folder / "crash_points.so"
    options = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *options, "-o", library, _SOURCE], check=True)
    return library


class Shim:
    """The library, within the process that it is preloaded into."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.crash_points_arm.argtypes = [
            ctypes.c_char_p,
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_long,
            ctypes.c_char_p,
        ]
        self._library.crash_points_calls.restype = ctypes.c_long
        self._library.crash_points_takers.restype = ctypes.c_long

    def arm(
        self, root: str, *, at: int = 0, torn: bool = False, full_from: int = 0, trace: str = ""
    ) -> None:
        """Begin to count the calls of this process below a folder; see `crash_points.c`."""
        self._library.crash_points_arm(root.encode(), at, torn, full_from, trace.encode())

    def note(self, text: str) -> None:
        """Put a word into the trace."""
        self._library.crash_points_note(text.encode())

    @property
    def calls(self) -> int:
        """How many calls there were, and how many of them take space."""
        return int(self._library.crash_points_calls())

    @property
    def takers(self) -> int:
        """How many of the calls take space."""
        return int(self._library.crash_points_takers())
