"""Speed and memory of the networks and their layers, beside stock Keras and plain PyTorch.

``python -m benchmarks.networks [layers|networks|all] [--case NAME ...] [--out FILE.json]``; the
backend is that of ``KERAS_BACKEND``.

layers
    ConvLSTM2D, ConvGRU2D and TimeDistributed beside Keras's layers of the same weights; ConvLSTM2D
    also beside a ConvLSTM in PyTorch of the usual kind: one convolution per step, over input and
    state together, in a loop of Python.
networks
    The network of Shi et al. for Moving MNIST with our layers and with Keras's, without peepholes
    in both, the first layer of Keras's forecaster fed with zeros; then every network of
    `nowcast.networks.NETWORKS` at 64 x 64 pixels.

The variants of a case each have a process of their own and take turns; a figure is the median of
the rounds, a ratio that of the medians of one run. A step of training is ``train_on_batch``,
inference is ``predict_on_batch``. Memory is the peak of the whole process less what it held before
the network was built; on a GPU the peak that the backend reports. Beside a GPU, the cases are also
measured in mixed precision, with and without XLA, and with larger batches, and the achieved
TFLOP/s of the convolutions and, with ``--peak-tflops``, their part of the peak are given.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SECONDS = 0.5  # a timing repeats its step for this long, and at least once
BATCHES = (8, 32, 128)  # on a GPU
MISSING_TORCH = "torch is not installed; pip install nowcast[backends]"


@dataclass(frozen=True)
class Recurrent:
    """A recurrent layer from frames to hidden frames."""

    side: int
    channels: int
    filters: int
    kernel: int
    frames: int = 10

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return (self.frames, self.side, self.side, self.channels)

    @property
    def flops(self) -> float:
        """Of the convolutions, for a sample forward."""
        products = self.kernel**2 * (self.channels + self.filters) * 4 * self.filters
        return 2.0 * self.frames * self.side**2 * products

    def build(self, variant: str) -> Any:
        """Give the network of one layer."""
        import keras

        from nowcast.networks import layers

        kind = {
            "ours": layers.ConvLSTM2D,
            "keras": keras.layers.ConvLSTM2D,
            "ConvGRU2D": layers.ConvGRU2D,
            "ConvGRU2D, reset after": lambda *given, **more: layers.ConvGRU2D(
                *given, reset_after=True, **more
            ),
        }[variant]
        frames = keras.Input(self.shape)
        hidden = kind(self.filters, self.kernel, padding="same", return_sequences=True)(frames)
        return keras.Model(frames, hidden)


@dataclass(frozen=True)
class Distributed:
    """A small CNN on every frame, each layer wrapped, and an LSTM."""

    side: int
    filters: tuple[int, ...]
    kernel: int
    frames: int = 10
    flops: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample."""
        return (self.frames, self.side, self.side, 1)

    def build(self, variant: str) -> Any:
        """Give the network."""
        import keras

        from nowcast.networks.layers import TimeDistributed

        each = TimeDistributed if variant == "ours" else keras.layers.TimeDistributed
        frames = hidden = keras.Input(self.shape)
        for filters in self.filters:
            convolution = keras.layers.Conv2D(
                filters, self.kernel, padding="same", activation="relu"
            )
            hidden = each(keras.layers.MaxPooling2D())(each(convolution)(hidden))
        hidden = keras.layers.LSTM(50)(each(keras.layers.Flatten())(hidden))
        return keras.Model(frames, keras.layers.Dense(1)(hidden))


@dataclass(frozen=True)
class Paper:
    """The three-layer encoder-forecaster of Shi et al. (2015) on patches of Moving MNIST."""

    filters: tuple[int, ...] = (128, 64, 64)
    kernel: int = 5
    frames: int = 10
    shape: tuple[int, ...] = (10, 16, 16, 16)

    @property
    def flops(self) -> float:
        """Of the convolutions, for a sample forward; none for the input that is not there."""
        below = (self.shape[-1], *self.filters[:-1])
        above = (0, *self.filters[:0:-1])
        pairs = [*zip(below, self.filters, strict=True)]
        pairs += [*zip(above, reversed(self.filters), strict=True)]
        products = sum(4 * own * (given + own) for given, own in pairs) * self.kernel**2
        return 2.0 * self.frames * self.shape[1] * self.shape[2] * products

    def build(self, variant: str) -> Any:
        """Give the network."""
        import keras

        from nowcast.networks import layers

        kind = layers.ConvLSTM2D if variant == "ours" else keras.layers.ConvLSTM2D
        settings = {"padding": "same", "return_sequences": True}
        frames = hidden = keras.Input(self.shape)
        states: list[Any] = []
        for filters in self.filters:
            layer = kind(filters, self.kernel, return_state=True, **settings)
            hidden, *state = layer(hidden)
            states.append(state)
        hidden, outputs = None, []
        for filters in reversed(self.filters):
            state = states.pop()
            if hidden is not None:
                hidden = kind(filters, self.kernel, **settings)(hidden, initial_state=state)
            elif variant == "ours":
                hidden = kind(filters, self.kernel, steps=self.frames, return_sequences=True)(state)
            else:
                nothing = keras.ops.zeros_like(state[0][:, None, ..., :1])
                nothing = keras.ops.repeat(nothing, self.frames, axis=1)
                hidden = kind(filters, self.kernel, **settings)(nothing, initial_state=state)
            outputs.append(hidden)
        joined = keras.ops.concatenate(outputs, axis=-1)
        return keras.Model(frames, keras.layers.Conv3D(self.shape[-1], 1)(joined))


@dataclass(frozen=True)
class OfZoo:
    """A network of `nowcast.networks.NETWORKS` with its default settings."""

    name: str
    shape: tuple[int, ...] = (10, 64, 64, 2)
    flops: float = 0.0

    def build(self, variant: str) -> Any:  # noqa: ARG002
        """Give the network."""
        from nowcast import networks

        frames, *grid, _ = self.shape
        return networks.build(
            self.name, settings={}, input_frames=frames, lead_frames=frames, grid=tuple(grid)
        )


@dataclass(frozen=True)
class Case:
    """What is measured in one run, side by side."""

    subject: Any
    variants: tuple[str, ...] = ("ours", "keras")
    batch: int = 8
    precision: str = "float32"
    jit: bool = False


def cases() -> dict[str, dict[str, Case]]:
    """Give the cases of each part."""
    from nowcast.networks import NETWORKS

    cells, units = ("ours", "keras", "torch"), ("ConvGRU2D", "ConvGRU2D, reset after", "keras")
    return {
        "layers": {
            "ConvLSTM2D 16x16, 5x5, 128 -> 128": Case(Recurrent(16, 128, 128, 5), cells),
            "ConvLSTM2D 16x16, 5x5, 64 -> 64": Case(Recurrent(16, 64, 64, 5), cells),
            "ConvLSTM2D 32x32, 3x3, 64 -> 64": Case(Recurrent(32, 64, 64, 3), cells, batch=4),
            "ConvLSTM2D 64x64, 3x3, 1 -> 32": Case(Recurrent(64, 1, 32, 3), cells, batch=4),
            "ConvGRU2D 16x16, 5x5, 64 -> 64": Case(Recurrent(16, 64, 64, 5), units),
            "TimeDistributed 10x10, textbook": Case(Distributed(10, (1,), 2), batch=32),
            "TimeDistributed 32x32": Case(Distributed(32, (8, 16), 3), batch=16),
        },
        "networks": {
            "Moving MNIST, 128-64-64": Case(Paper()),
            **{name: Case(OfZoo(name), ("ours",), batch=4) for name in NETWORKS},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", default="all", choices=("layers", "networks", "all"))
    parser.add_argument(
        "--case", nargs="+", default=[], help="those whose names contain one of these"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, help="of the chip, for its part of the peak")
    parser.add_argument("--profile", action="store_true", help="also the costliest operations")
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with fresh_process() as process:
        machine = process.submit(_machine).result()
    print(json.dumps(machine, indent=2), flush=True)
    figures: dict[str, Any] = {"machine": machine}
    for part, chosen in cases().items():
        for name, case in chosen.items() if given.part in (part, "all") else ():
            if given.case and not any(wanted in name for wanted in given.case):
                continue
            for label, settings in _settings(name, case, machine):
                figures[label] = measure(settings, given.rounds, given.peak_tflops, given.profile)
                print(label, json.dumps(figures[label], indent=2), flush=True)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(case: Case, rounds: int, peak_tflops: float | None, profile: bool) -> dict[str, Any]:
    """Measure the variants of a case in turns; give their medians, and ratios to stock Keras."""
    figures: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        processes = {}
        for variant in case.variants:
            if variant == "torch" and find_spec("torch") is None:
                figures[variant] = {"skipped": MISSING_TORCH}
                continue
            processes[variant] = stack.enter_context(fresh_process())
            figures[variant] = processes[variant].submit(_start, case, variant).result()
        for what in ("inference", "training"):
            timings: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
            for _ in range(rounds):
                for variant, process in processes.items():
                    timings[variant].append(process.submit(timed, what).result())
            for variant, pairs in timings.items():
                wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
                figures[variant] |= {f"{what}_ms": 1e3 * wall, f"{what}_cpu_ms": 1e3 * cpu}
        for variant, process in processes.items():
            figures[variant]["peak_mb"] = process.submit(_peak).result()
            figures[variant] |= _achieved(case, figures[variant], peak_tflops)
            if profile:
                figures[variant]["costliest"] = process.submit(_profile).result()
    return {"variants": figures, "ratios": _ratios(figures)}


def _settings(name: str, case: Case, machine: dict[str, Any]) -> Iterator[tuple[str, Case]]:
    """Give what is measured of a case: on a processor itself, on a GPU in many ways."""
    always = machine["backend"] == "jax"  # which without XLA runs operation by operation
    if not machine["gpu"]:
        yield name, replace(case, jit=always)
        return
    precisions = ("float32", "mixed_bfloat16", "mixed_float16")
    for precision, jit, batch in itertools.product(
        precisions, (True,) if always else (False, True), BATCHES
    ):
        label = f"{name}, {precision}, {'with' if jit else 'without'} XLA, batch {batch}"
        yield label, replace(case, precision=precision, jit=jit, batch=batch)


def _achieved(case: Case, figures: dict[str, float], peak_tflops: float | None) -> dict[str, float]:
    """Give the TFLOP/s of a step of training: forward, and twice as much backward."""
    if not case.subject.flops:
        return {}
    achieved = 3 * case.batch * case.subject.flops / figures["training_ms"] / 1e9
    part = {"part_of_peak": achieved / peak_tflops} if peak_tflops else {}
    return {"training_tflops": achieved, **part}


def _ratios(figures: dict[str, Any]) -> dict[str, float]:
    stock = figures.get("keras", {})
    return {
        f"{variant} / keras, {key}": row[key] / stock[key]
        for variant, row in figures.items()
        for key in ("training_ms", "training_cpu_ms", "inference_ms", "inference_cpu_ms", "peak_mb")
        if variant != "keras" and key in row and key in stock
    }


@contextlib.contextmanager
def fresh_process() -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """Give a fresh process that keeps what it has built."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        yield pool


# What follows runs in the process of a variant.

prepared: dict[str, Callable[[], Any]] = {}
_resident = 0.0


def _machine() -> dict[str, Any]:
    from nowcast.networks import load_keras

    keras = load_keras()
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "gpu": _has_gpu(keras.backend.backend()),
    }


def _has_gpu(backend: str) -> bool:
    if backend == "torch":
        import torch

        return bool(torch.cuda.is_available())
    import keras

    return bool(keras.distribution.list_devices()[0].startswith("gpu"))


def _start(case: Case, variant: str) -> dict[str, Any]:
    """Build a variant; give its parameters, and the seconds until each step has run once."""
    global _resident
    generator = np.random.default_rng(0)
    frames = generator.random((case.batch, *case.subject.shape), np.float32)
    prepare = _plain_torch if variant == "torch" else _keras
    started = time.perf_counter()
    parameters = prepare(case, variant, frames)
    for step in prepared.values():
        step()
    return {"parameters": parameters, "first_s": time.perf_counter() - started}


def _keras(case: Case, variant: str, frames: np.ndarray) -> int:
    global _resident
    from nowcast.networks import load_keras

    keras = load_keras()
    keras.mixed_precision.set_global_policy(case.precision)
    _resident = psutil.Process().memory_info().rss / 1e6
    network = case.subject.build(variant)
    network.compile(keras.optimizers.RMSprop(1e-3), loss="mse", jit_compile=case.jit)
    shape = (case.batch, *network.output_shape[1:])
    targets = np.random.default_rng(1).random(shape, np.float32)  # zeros end in denormal numbers
    prepared["inference"] = lambda: network.predict_on_batch(frames)
    prepared["training"] = lambda: network.train_on_batch(frames, targets)
    return int(network.count_params())


def _plain_torch(case: Case, variant: str, frames: np.ndarray) -> int:  # noqa: ARG001
    """Make a ConvLSTM as most repositories write it."""
    global _resident
    import torch

    subject, device = case.subject, "cuda" if torch.cuda.is_available() else "cpu"
    kinds = {"float32": None, "mixed_bfloat16": torch.bfloat16, "mixed_float16": torch.float16}
    kind = kinds[case.precision]
    _resident = psutil.Process().memory_info().rss / 1e6

    class ConvLSTM(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            channels = subject.channels + subject.filters
            self.gates = torch.nn.Conv2d(
                channels, 4 * subject.filters, subject.kernel, padding="same"
            )

        def forward(self, sequence: Any) -> Any:
            hidden = cell = sequence.new_zeros(
                len(sequence), subject.filters, subject.side, subject.side
            )
            outputs = []
            for frame in sequence.unbind(1):
                i, f, c, o = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
                cell = f.sigmoid() * cell + i.sigmoid() * c.tanh()
                hidden = o.sigmoid() * cell.tanh()
                outputs.append(hidden)
            return torch.stack(outputs, 1)

    network = ConvLSTM().to(device)
    compiled = torch.compile(network) if case.jit and device == "cuda" else network
    optimiser = torch.optim.RMSprop(network.parameters(), 1e-3)
    sequence = torch.from_numpy(np.moveaxis(frames, -1, 2).copy())
    targets = torch.rand(case.batch, subject.frames, subject.filters, subject.side, subject.side)

    def forward() -> Any:
        with torch.autocast(device, kind, enabled=kind is not None):
            return compiled(sequence.to(device))

    def infer() -> Any:
        with torch.no_grad():
            return forward().float().cpu().numpy()

    def train() -> float:
        optimiser.zero_grad()
        loss = (forward().float() - targets.to(device)).square().mean()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    prepared["inference"], prepared["training"] = infer, train
    return sum(parameter.numel() for parameter in network.parameters())


def timed(what: str) -> tuple[float, float]:
    """Give the seconds of a step, by the clock and of all processors."""
    steps, started, used = 0, time.perf_counter(), time.process_time()
    while not steps or time.perf_counter() - started < SECONDS:
        prepared[what]()
        steps += 1
    return (time.perf_counter() - started) / steps, (time.process_time() - used) / steps


def _peak() -> float:
    """Give the most memory that was held, in MB."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return float(sys.modules["torch"].cuda.max_memory_allocated() / 1e6)
    if "keras" in sys.modules and _has_gpu(backend := sys.modules["keras"].backend.backend()):
        if backend == "jax":
            import jax

            return float(jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e6)
        import tensorflow as tf

        return float(tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - _resident


def _profile(most: int = 15) -> dict[str, float] | str:
    """Give the operations that take most of a step of training, in ms."""
    if "tensorflow" in sys.modules and sys.modules["keras"].backend.backend() == "tensorflow":
        totals = _profile_tensorflow()
    elif "torch" in sys.modules:
        import torch

        with torch.profiler.profile() as profile:
            prepared["training"]()
        totals = Counter({row.key: row.self_cpu_time_total / 1e3 for row in profile.key_averages()})
    else:
        return "skipped: no list of operations under jax; use jax.profiler.trace"
    return dict(totals.most_common(most))


def _profile_tensorflow() -> Counter[str]:
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    totals: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            prepared["training"]()
        for path in Path(folder).rglob("*.xplane.pb"):
            space = xplane_pb2.XSpace.FromString(path.read_bytes())
            for plane in space.planes:
                for event in itertools.chain(*(line.events for line in plane.lines)):
                    # An operation's event is called "its place in the graph:its kind".
                    name = plane.event_metadata[event.metadata_id].name
                    place, _, kind = name.rpartition(":")
                    if place and not place.startswith("$") and kind.isidentifier():
                        totals[kind] += event.duration_ps / 1e9
    return totals


if __name__ == "__main__":
    sys.exit(main())
