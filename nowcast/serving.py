"""The champion behind an endpoint that speaks MLflow's protocol.

For loopback and guarded networks: the server is MLflow's own, which has no size limits.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.nowcasters.neural import nowcast_with
from nowcast.nowcasters.saved import NeuralSettings
from nowcast.tracking import ENVIRONMENT, Tracking, resolve

HOST = "127.0.0.1"
START_SECONDS = 120  # TensorFlow's import on a busy machine included
REQUEST_SECONDS = 60
STOP_SECONDS = 10
WATCH = ["sh", "-c", "read _; kill -TERM 0"]  # of its own group of processes


class ServingError(RuntimeError):
    """The endpoint did not start or did not answer as it should."""


def command(uri: str, *, port: int) -> list[str]:
    """Give the command that serves a model of the registry on loopback, in this environment.

    Examples
    --------
    >>> command("models:/nowcast@champion", port=5001)[1:]
    ['-m', 'mlflow', 'models', 'serve', '--model-uri', 'models:/nowcast@champion',
     '--env-manager', 'local', '--host', '127.0.0.1', '--port', '5001']
    """
    options = ["--model-uri", uri, "--env-manager", "local", "--host", HOST, "--port", str(port)]
    return [sys.executable, "-m", "mlflow", "models", "serve", *options]


def environment(tracking: Tracking) -> dict[str, str]:
    """Give the environment in which the server finds the registry."""
    # MLflow starts uvicorn by its name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **ENVIRONMENT,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **os.environ,
        "PATH": path,
        "MLFLOW_TRACKING_URI": tracking.uri,
        "MLFLOW_REGISTRY_URI": tracking.uri,
    }


def serve(uri: str, tracking: Tracking, *, port: int) -> int:
    """Serve a model until interrupted; give the server's exit status.

    Raises
    ------
    ServingError
        If the port is taken.
    nowcast.tracking.TrackingError
        If there is no such model.
    """
    _check_free(port)
    with _running(command(resolve(uri, tracking), port=port), tracking) as server:
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            return server.wait()
        finally:
            signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def endpoint(uri: str, tracking: Tracking, *, log: Path, port: int = 0) -> Iterator[str]:
    """Serve a model for the length of the block; give the address once it answers.

    Parameters
    ----------
    uri
        Of the model.
    tracking
        Where the registry is.
    log
        File for what the server prints.
    port
        0 takes a free one.

    Raises
    ------
    ServingError
        If the server does not answer in time; the message names the log.
    """
    port = port or _free_port()
    _check_free(port)
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = command(resolve(uri, tracking), port=port)
    with log.open("w") as output, _running(arguments, tracking, output) as server:
        address = f"http://{HOST}:{port}"
        _wait_until_ready(address, server, log)
        yield address


@dataclass(frozen=True)
class EndpointNowcaster:
    """A served network as a nowcaster: the settings are local, the computing is remote.

    Parameters
    ----------
    settings
        Of the served network, from the registry.
    address
        Such as ``http://127.0.0.1:5001``.
    """

    settings: NeuralSettings
    address: str

    @property
    def input_frames(self) -> int:
        """Frames up to and with the base time that it uses."""
        return self.settings.window.input_frames

    @property
    def step(self) -> pd.Timedelta | None:
        """Time between them."""
        return self.settings.window.step

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the endpoint's nowcast: its field; see `nowcast.nowcasters.Nowcaster`.

        The endpoint answers with lead frames alone, so that of probabilities or quantiles comes
        the median, or what its decision levels decide. Who needs them issues with the saved
        nowcaster.

        Raises
        ------
        ServingError
            If the endpoint does not answer, or not with lead frames of the right shape.
        """
        name = self.settings.variable.name
        return nowcast_with(
            self.settings,
            lambda frames: {name: self.forecast(frames)},
            observed,
            base_times=base_times,
            lead_times=lead_times,
        )

    def forecast(self, frames: np.ndarray) -> np.ndarray:
        """Give the endpoint's lead frames for bare arrays; missing pixels travel as null."""
        answer = self._post({"inputs": _with_null(frames)})
        lead_frames = np.array(answer.get("predictions"), dtype=np.float32)
        batch, _, height, width = frames.shape
        expected = (batch, self.settings.window.lead_frames, height, width)
        if lead_frames.shape != expected:
            raise ServingError(
                f"{self.address} answered with the shape {lead_frames.shape} instead of "
                f"{expected}; does it serve another model?"
            )
        return lead_frames

    def _post(self, content: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.address}/invocations",
            data=json.dumps(content, allow_nan=False).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
                body: dict[str, Any] = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise ServingError(f"{self.address} refused: {_message(error)}") from error
        except (OSError, ValueError) as error:
            raise ServingError(
                f"the endpoint {self.address} does not answer ({error}); start one with "
                "`nowcast serve`"
            ) from error
        return body


def _with_null(frames: np.ndarray) -> list[Any]:
    plain = frames.astype(object)
    plain[np.isnan(frames)] = None
    nested: list[Any] = plain.tolist()
    return nested


def _message(error: urllib.error.HTTPError) -> str:
    try:
        text = str(json.loads(error.read()).get("message", ""))
    except (OSError, ValueError, AttributeError):
        text = ""
    return f"HTTP {error.code} {text.splitlines()[0][:300] if text else error.reason}"


def _wait_until_ready(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/ping", timeout=2):
            return
        time.sleep(0.2)
    raise ServingError(f"the endpoint did not start within {START_SECONDS} s; {log} says why")


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _running(
    arguments: list[str], tracking: Tracking, output: IO[str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server for the length of the block, and no longer than this process lasts.

    Even if this process is killed: in the server's group of processes a shell waits for the end of
    its input, which only this process holds, and then ends the group.
    """
    errors = None if output is None else subprocess.STDOUT
    server = subprocess.Popen(
        arguments, env=environment(tracking), stdout=output, stderr=errors, process_group=0
    )
    group = [server]
    try:
        group.append(subprocess.Popen(WATCH, stdin=subprocess.PIPE, process_group=server.pid))
        yield server
    finally:
        _stop(*group)


def _stop(*group: "subprocess.Popen[bytes]") -> None:
    """End a group of processes, and what the first has started, which outlives it for a moment."""
    deadline = time.monotonic() + STOP_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group[0].pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            for process in group:
                process.poll()
            os.killpg(group[0].pid, 0)
            time.sleep(0.05)
        os.killpg(group[0].pid, signal.SIGKILL)
    for process in group:
        process.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OverflowError as error:
            raise ServingError(f"a port is from 1 to 65535; received {port}") from error
        except OSError as error:
            raise ServingError(
                f"port {port} on {HOST} is taken ({error.strerror}); choose another with --port"
            ) from error
