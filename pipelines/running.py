"""The command of a cycle: once by hand, or on a cron with a Prefect server of its own."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from nowcast import __version__
from nowcast.config import ConfigError, load

FAILURE, USAGE = 1, 2  # exit status
HOST = "127.0.0.1"
PORT = 4200  # Prefect's usual one
START_SECONDS = 180  # a server answers after 5 to 15 s; more on a busy machine
END_SECONDS = 60  # for a run to finish, and a server to end, before they are killed
POLL_SECONDS = 0.2
CRON_FIELDS = 5
IN_MEMORY = "sqlite+aiosqlite:///:memory:"

Process = subprocess.Popen[bytes]

app = App(
    name="python -m pipelines.cycle",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
)


@app.default
def run(
    *,
    feed: str,
    archive: Path,
    out: Path,
    nowcaster: str = "extrapolation",
    config: Path | None = None,
    work: Path = Path("nowcast-work"),
    cron: str = "",
    port: int = PORT,
) -> int:
    """Ingest a feed, issue a nowcast from the newest base time, verify those that came true.

    Once, or on a cron until interrupted. Example: python -m pipelines.cycle --feed radar
    --archive archive --out out --cron "*/5 * * * *"

    Parameters
    ----------
    feed
        Folder, file or pattern of radar files.
    archive
        Folder of the frame archive, made if missing.
    out
        Folder of issued files, verdicts and scores, made if missing.
    nowcaster
        Name, folder or model of the registry.
    config
        TOML file of settings.
    work
        Folder of runs, models and caches, and of Prefect's own files.
    cron
        When to run, in UTC, such as "*/5 * * * *"; once and now without it.
    port
        On 127.0.0.1, of the Prefect server that is started unless PREFECT_API_URL is set.
    """
    _check(config)
    is_name = not Path(nowcaster).is_dir()
    parameters = {
        "feed": str(Path(feed).absolute()),
        "archive": str(archive.absolute()),
        "out": str(out.absolute()),
        "nowcaster": nowcaster if is_name else str(Path(nowcaster).absolute()),
        "work": str(work.absolute()),
        "config": str(config.absolute()) if config else "",
    }
    home = work.absolute() / "prefect"
    return _on_cron(cron, parameters, home, port) if cron else _once(parameters, home)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 failed or refused, 2 wrong usage; errors are one line."""
    try:
        status = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        sys.exit(_fail(str(error), USAGE))
    except ConfigError as error:
        sys.exit(_fail(str(error), USAGE))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", FAILURE))
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        sys.exit(_fail(str(error), FAILURE))
    sys.exit(status if isinstance(status, int) else 0)


def _once(parameters: dict[str, str], home: Path) -> int:
    # A server of one process and one run needs no database file, which two would migrate at once.
    settings = {"PREFECT_API_DATABASE_CONNECTION_URL": IN_MEMORY}
    _set_up(home, {**settings, "PREFECT_LOGGING_LEVEL": "CRITICAL"})
    from pipelines.cycle import cycle
    from pipelines.steps import REFUSED

    told = cycle(**parameters)
    print(json.dumps(told, indent=2, allow_nan=False))
    return FAILURE if told["verdict"].startswith(REFUSED) else 0


def _on_cron(cron: str, parameters: dict[str, str], home: Path, port: int) -> int:
    if len(cron.split()) != CRON_FIELDS:
        raise _no_cron(cron)
    if "PREFECT_API_URL" in os.environ:
        return _serve(cron, parameters, home)
    return _serve_with_a_server(cron, parameters, home, port)


def _serve(cron: str, parameters: dict[str, str], home: Path) -> int:
    """Deploy the cycle on the server of PREFECT_API_URL, and run it here when it is due."""
    _set_up(home, {})
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.flows import EntrypointType

    from pipelines.cycle import cycle

    try:
        CronSchedule(cron=cron)
    except ValueError as error:
        raise _no_cron(cron) from error
    cycle.serve(
        name=Path(parameters["out"]).name,
        cron=cron,
        parameters=parameters,
        limit=1,
        entrypoint_type=EntrypointType.MODULE_PATH,
        print_starting_message=False,
    )
    return 0


def _serve_with_a_server(cron: str, parameters: dict[str, str], home: Path, port: int) -> int:
    """Keep a Prefect server, and a second process of this command that uses it.

    Two processes, since when Prefect is told to end in the middle of a run, it goes on with the
    run and needs the server until that is done.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _check_free(port)
    address = f"http://{HOST}:{port}"
    # By default any web page that is open in a browser could talk to the server.
    own = {
        "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address,
    }
    _set_up(home, {**own, "PREFECT_API_URL": f"{address}/api"})
    options = [f"--{name}={value}" for name, value in parameters.items() if value]
    log = home / "server.log"
    with contextlib.suppress(KeyboardInterrupt), log.open("wb") as output:
        start = ["prefect", "server", "start", f"--host={HOST}", f"--port={port}"]
        with _process(*start, output=output) as server:
            _wait_until_healthy(server, port, log)
            with _process("pipelines.cycle", *options, f"--cron={cron}") as serving:
                _say(f"a cycle at {cron!r}, UTC; see {address}; end with Ctrl-C or SIGTERM")
                return _watch(serving, server, log)
    return 0


def _watch(serving: Process, server: Process, log: Path) -> int:
    """Wait for the process that serves to end by itself; without a server no cron would fire."""
    while serving.poll() is None:
        if server.poll() is not None:
            raise RuntimeError(f"the Prefect server has ended by itself; see {log}")
        time.sleep(POLL_SECONDS)
    return serving.returncode


def _set_up(home: Path, settings: dict[str, str]) -> None:
    """Set what Prefect shall read when it is imported; what the user has set stays."""
    if importlib.util.find_spec("prefect") is None:
        raise ImportError("the scheduled run needs Prefect; install nowcast[pipelines]")
    home.mkdir(parents=True, exist_ok=True)
    always = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(START_SECONDS),
        "PREFECT_LOGGING_EXTRA_LOGGERS": "nowcast,pipelines",
    }
    # A server of the user's may need what is in the user's own home, such as a key.
    homes = {} if "PREFECT_API_URL" in os.environ else {"PREFECT_HOME": str(home)}
    for name, value in {**always, **homes, **settings}.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _process(*module: str, output: Any = None) -> Iterator[Process]:
    """Run a Python module for the length of the block; then end it with all that it started."""
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=True,  # so that Ctrl-C reaches it only from here, in the right order
    )
    try:
        yield process
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_healthy(server: Process, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://{HOST}:{port}/api/health", timeout=5).close()
            return
        time.sleep(POLL_SECONDS)
    raise RuntimeError(f"the Prefect server did not start on port {port}; see {log}")


def _check(config: Path | None) -> None:
    try:
        if config:
            load(config)
    except OSError as error:
        raise ConfigError(f"the settings file {config} cannot be read: {error.strerror}") from error


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OverflowError as error:
            raise ConfigError(f"a port is from 1 to 65535; received {port}") from error
        except OSError as error:
            raise RuntimeError(
                f"port {port} is taken; give another --port, or set PREFECT_API_URL to the Prefect "
                f"server that listens there, as http://{HOST}:{port}/api"
            ) from error


def _no_cron(cron: str) -> ConfigError:
    return ConfigError(f'{cron!r} is no cron; write five fields, as "*/5 * * * *"')


def _say(message: str) -> None:
    print(f"nowcast: {message}", file=sys.stderr, flush=True)


def _fail(message: str, status: int) -> int:
    line = " ".join(part.strip(" │╭╮╰╯─") for part in message.splitlines() if part.strip())
    _say(f"error: {line}")
    return status
