"""Where Dask computes: threads of this process, a cluster of this machine, or one that is named."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

THREADS, LOCAL = "threads", "local"
SECONDS_TO_ANSWER = 10.0  # of a scheduler


@contextlib.contextmanager
def computing(
    dask: str = THREADS,
    *,
    say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[None]:
    """Have Dask compute in a chosen place within the block; the results are the same.

    Parameters
    ----------
    dask
        ``threads``: in this process; ``local``: a cluster of processes on this machine;
        ``tcp://HOST:PORT``: the scheduler of a cluster, whose workers see the same files and have
        the same nowcast installed.
    say
        Told the address of a cluster's dashboard, which shows its progress.
    progress
        Called, where threads of this process compute, with the tasks of a graph done and all.

    Raises
    ------
    ValueError
        If the place is unknown, or no scheduler answers there.
    """
    if dask == THREADS:
        with _reporting(progress) if progress else contextlib.nullcontext():
            yield
        return
    from dask.distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        if dask == LOCAL:
            where = stack.enter_context(LocalCluster(dashboard_address="127.0.0.1:0"))
        elif dask.startswith(("tcp://", "tls://")):
            where = dask
        else:
            raise ValueError(
                f"unknown place for Dask {dask!r}; give {THREADS}, {LOCAL}, or the address of a "
                "scheduler, as in tcp://127.0.0.1:8786"
            )
        try:
            client = stack.enter_context(Client(where, timeout=SECONDS_TO_ANSWER))
        except OSError as error:
            raise ValueError(
                f"no Dask scheduler answers at {dask}; start one with: dask scheduler"
            ) from error
        if say:
            say(f"Dask dashboard: {client.dashboard_link}")
        yield


def _reporting(progress: Callable[[int, int], None]) -> Any:
    from dask.callbacks import Callback

    def after_task(_key: Any, _value: Any, _graph: Any, state: Any, _worker: Any) -> None:
        done = len(state["finished"])
        progress(done, done + sum(len(state[kind]) for kind in ("ready", "waiting", "running")))

    return Callback(posttask=after_task)
