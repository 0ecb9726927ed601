"""Time and memory of ``nowcast demo``, all its processes together.

``python benchmarks/demo_cost.py`` prints wall time and the peak of the proportional set size (PSS),
which counts memory shared between processes once; sampled twice a second. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time

import psutil


def memory_of(process: psutil.Process) -> int:
    """Give the bytes of a process and everything it started."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", default="", help="kept; by default a folder that is removed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        code = "from nowcast.cli import main; main()"
        command = [sys.executable, "-c", code, "demo", "--work", given.work or folder]
        started, peak = time.monotonic(), 0
        demo = subprocess.Popen(command)
        process = psutil.Process(demo.pid)
        while demo.poll() is None:
            if process.is_running():
                peak = max(peak, memory_of(process))
            time.sleep(0.5)
        seconds = time.monotonic() - started
    print(f"exit status {demo.returncode}; {seconds:.0f} s; peak {peak / 1e9:.2f} GB")
    sys.exit(demo.returncode)


if __name__ == "__main__":
    main()
