"""What devices are given: batches of codes, which become values there; precision; several at once.

For any backend of Keras, but for `feed_tf_data`. Codes are those of `nowcast.cache.Coding`.
"""

import contextlib
from collections.abc import Iterator
from importlib import import_module
from random import Random
from typing import Any

import numpy as np

from nowcast.cache import Coding
from nowcast.frames import Batches
from nowcast.networks import load_keras
from nowcast.networks.losses import Loss
from nowcast.rainrate import Transform


def on_codes(
    network: Any,
    loss: Loss,
    *,
    coding: Coding,
    transform: Transform,
    grid: tuple[int, int] | None = None,
) -> Any:
    """Give a model that is fitted on codes: they become values on the device.

    Codes are a quarter of the bytes to move there. The model shares the network's weights and has
    none of its own, so that the network fitted inside it is saved alone.

    Parameters
    ----------
    network
        From values and where they were observed; see `nowcast.networks`.
    loss
        Of targets on the network's scale, NaN where missing, and raw outputs; see
        `nowcast.networks.losses`.
    coding, transform
        Of the codes; the scale the network sees.
    grid : (y, x)
        Of the frames, padded with missing pixels to the network's; by default its own.

    Returns
    -------
    keras.Model
        ``(batch, frame, y, x)`` of codes, and motion if it sees that, to what the network gives.
        Compile it without a loss.
        Targets are codes where the network gives frames, and else what the loss takes.
    """
    import keras
    from keras import ops

    scaled = _scaled(coding, transform)
    zeroed = np.nan_to_num(scaled, nan=0.0)

    class Decoding(keras.layers.Layer):  # type: ignore[misc]
        """Channel 0 the value on the network's scale, 0 where missing; channel 1, if any, seen."""

        def call(self, codes: Any) -> Any:
            codes = ops.pad(codes, [(0, 0), (0, 0), *more]) if np.any(more) else codes
            values = ops.take(zeroed, ops.cast(codes, "int32"), axis=0)
            seen = ops.cast(codes > 0, values.dtype)
            return ops.stack([values, seen][:channels], axis=-1)

    class OnCodes(keras.Model):  # type: ignore[misc]
        """Takes targets as they come: a loss given to `compile` gets them as 32-bit floats."""

        def compute_loss(self, _: Any, y: Any, y_pred: Any, __: Any = None) -> Any:
            targets = ops.take(scaled, ops.cast(y, "int32"), axis=0) if of_frames else y
            return loss(targets, y_pred)

    seen, *others = network.inputs
    _, frames, *taken, channels = seen.shape
    grid, of_frames = grid or tuple(taken), len(network.output_shape) == len(seen.shape)
    more = [(0, side - given) for side, given in zip(taken, grid, strict=True)]
    codes = keras.Input((frames, *grid), dtype=coding.dtype, name="codes")
    decoded = Decoding(name="decoding", dtype="float32")(codes)
    if not others:
        return OnCodes(codes, network(decoded))
    motion = keras.Input((2, *grid), dtype="float32", name="motion")
    return OnCodes([codes, motion], network([decoded, ops.pad(motion, [(0, 0), (0, 0), *more])]))


def _scaled(coding: Coding, transform: Transform) -> np.ndarray:
    """Give the value of each code on the network's scale, NaN for missing."""
    scaled: np.ndarray = transform.forward(coding.table).astype(np.float32)
    return scaled


def feed(batches: Batches, *, workers: int = 1, limit: int = 0) -> Any:
    """Give what Keras reads batches from, with any backend.

    Parameters
    ----------
    batches
        Drawn anew after each epoch.
    workers
        Threads that read them; the batches and their order do not depend on it.
    limit
        Batches in an epoch; 0 for all.
    """
    import keras

    class Feed(keras.utils.PyDataset):  # type: ignore[misc]
        """Batches by their number."""

        def __len__(self) -> int:
            return min(limit or len(batches), len(batches))

        def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
            return batches[index]

        def on_epoch_end(self) -> None:
            batches.next_epoch()

    # Each batch that waits is memory that is not in the processor's cache when it is written.
    return Feed(workers=workers, max_queue_size=workers)


def feed_tf_data(batches: Batches, *, workers: int = 1, limit: int = 0) -> Any:
    """Give the same batches in the same order as a `tf.data.Dataset`; needs TensorFlow.

    For pipelines of one's own: `fit` reads by `feed`, the faster of the two where ``python -m
    benchmarks.data feed`` was run. Batches are drawn anew at the start of each iteration, so only
    one may be under way.

    Parameters
    ----------
    batches, workers, limit
        See `feed`.
    """
    import tensorflow as tf

    count = min(limit or len(batches), len(batches))
    likes = batches[0]

    def numbers() -> range:
        # Not at the end: an iteration's last numbers are handed out before they are read. Keras
        # ends an epoch of `feed` before the first one too, so that both draw the same.
        batches.next_epoch()
        return range(count)

    def flat(number: Any) -> list[np.ndarray]:
        return list(tf.nest.flatten(batches[int(number)]))

    def read(number: Any) -> Any:
        every = tf.nest.flatten(likes)  # inputs may be a pair
        arrays = tf.numpy_function(flat, [number], [like.dtype for like in every])
        shaped = [
            tf.ensure_shape(array, (None, *like.shape[1:]))  # the last batch may be smaller
            for array, like in zip(arrays, every, strict=True)
        ]
        return tf.nest.pack_sequence_as(likes, shaped)

    numbered = tf.data.Dataset.from_generator(numbers, output_signature=tf.TensorSpec((), tf.int64))
    read_ahead = numbered.map(read, num_parallel_calls=workers, deterministic=True).prefetch(1)
    return read_ahead.apply(tf.data.experimental.assert_cardinality(count))


@contextlib.contextmanager
def spread_over(devices: int, *, batch_size: int) -> Iterator[None]:
    """Have Keras share each batch out to several devices within the block; weights are on each.

    Parameters
    ----------
    devices
        How many; with 1, nothing is done.
    batch_size
        Of which each device gets an equal part.

    Raises
    ------
    ValueError
        If the backend cannot, there are fewer devices, or the batch has no equal parts.
    """
    if devices == 1:
        yield
        return
    keras = load_keras()
    backend = keras.backend.backend()
    if backend != "jax":
        raise ValueError(
            f"training.devices={devices} needs the backend jax, which shares batches out; "
            f"it is {backend!r}; set KERAS_BACKEND=jax, or training.devices=1"
        )
    known = keras.distribution.list_devices()
    if len(known) < devices or batch_size % devices:
        raise ValueError(
            f"training.devices={devices} needs as many devices and a batch of a multiple of them; "
            f"there are {len(known)} ({', '.join(known)}), and training.batch_size is {batch_size}"
        )
    shared = keras.distribution.DataParallel(devices=known[:devices], auto_shard_dataset=False)
    keras.distribution.set_distribution(shared)
    try:
        yield
    finally:
        keras.distribution.set_distribution(None)


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Have Keras build layers within the block that compute in a precision; weights have 32 bits.

    Parameters
    ----------
    precision
        Keras's name: ``float32``, ``mixed_bfloat16``, ``mixed_float16``.
    """
    keras = load_keras()
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Have Keras draw what layers built within the block start from by a seed, and by that alone.

    Keras draws every layer's own seed from Python's global generator, which any thread of the
    process may draw from in between, as Prefect's thread of events does in a flow; weights then
    differ from run to run, whatever was seeded. Within the block Keras has a generator to itself,
    whose numbers are those after ``random.seed(seed)``.
    """
    load_keras()
    seeds: Any = import_module("keras.src.random.seed_generator")
    before = seeds.python_random
    seeds.python_random = Random(seed)
    try:
        yield
    finally:
        seeds.python_random = before


def has_gpu() -> bool:
    """Tell whether there is one; of other backends than TensorFlow it is taken for granted."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow

    return bool(tensorflow.config.list_physical_devices("GPU"))
