"""The command of a cycle: once by hand, or on a cron with a Prefect server of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.exceptions import CycloptsError

from nowcast.config import ConfigError, load

FAILURE, USAGE = 1, 2  # exit status
HOST = "127.0.0.1"
PORT = 4200  # Prefect's usual one
START_SECONDS = 180  # a server answers after 5 to 15 s; more on a busy machine
END_SECONDS = 10  # for a server to end before it is killed
IN_MEMORY = "sqlite+aiosqlite:///:memory:"

app = App(
    name="python -m pipelines.cycle",
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server is ended too
    own = "PREFECT_API_URL" not in os.environ
    address = f"http://{HOST}:{port}"
    if own:
        _check_free(port)
        _set_up(
            home,
            {
                "PREFECT_API_URL": f"{address}/api",
                "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
                # By default any web page that is open in a browser could talk to the server.
                "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": address,
            },
        )
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.flows import EntrypointType

    from pipelines.cycle import cycle

    try:
        CronSchedule(cron=cron)
    except ValueError as error:
        raise ConfigError(f'{cron!r} is no cron; write five fields, as "*/5 * * * *"') from error
    with _server(home, port) if own else contextlib.nullcontext():
        print(f"nowcast: a cycle at {cron!r}; server {os.environ['PREFECT_API_URL']}; "
              "end with Ctrl-C or SIGTERM", file=sys.stderr, flush=True)  # fmt: skip
        cycle.serve(
            name=Path(parameters["out"]).name,
            cron=cron,
            parameters=parameters,
            limit=1,
            entrypoint_type=EntrypointType.MODULE_PATH,
            print_starting_message=False,
        )
    return 0


def _set_up(home: Path, settings: dict[str, str]) -> None:
    """Set what Prefect shall read when it is imported; what the user has set stays."""
    if "prefect" in sys.modules:
        raise RuntimeError("Prefect was imported before its settings were made")
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
def _server(home: Path, port: int) -> Iterator[None]:
    """Run a Prefect server on loopback for the length of the block."""
    command = [sys.executable, "-m", "prefect", "server", "start"]
    log = home / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--host", HOST, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must reach it after what still talks to it
        )
    wanted = threading.Event()
    try:
        _wait_until_healthy(server, port, log)
        wanted.set()
        threading.Thread(target=_end_with, args=(server, wanted), daemon=True).start()
        yield
    finally:
        wanted.clear()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        server.terminate()
        try:
            server.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _end_with(server: Any, wanted: threading.Event) -> None:
    """End this process if the server ends by itself: without one no cron would fire."""
    server.wait()
    if wanted.is_set():
        _fail("the Prefect server has ended by itself; see server.log", FAILURE)
        os._exit(FAILURE)


def _wait_until_healthy(server: Any, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://{HOST}:{port}/api/health", timeout=5).close()
            return
        time.sleep(0.2)
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
        except OSError as error:
            raise RuntimeError(
                f"port {port} is taken; give another --port, or set PREFECT_API_URL to the Prefect "
                f"server that listens there, as http://{HOST}:{port}/api"
            ) from error


def _fail(message: str, status: int) -> int:
    line = " ".join(part.strip(" │╭╮╰╯─") for part in message.splitlines() if part.strip())
    print(f"nowcast: error: {line}", file=sys.stderr, flush=True)
    return status
