import json

import numpy as np
import pytest
import xarray as xr

from nowcast.data.blocks import pack, unpack
from nowcast.data.synthetic import synthesise


@pytest.fixture
def frames():
    observed = synthesise(hours=1, size=16).isel(time=slice(4)).load()
    return observed.drop_vars(["motion_y", "motion_x"])


def sent(block, name="rain_rate", *, largest_frame=256):
    """Give what arrives of a block."""
    header, arrays = pack(block, name)
    header = json.loads(json.dumps(header))
    content = b"".join(array.tobytes() for array in arrays)
    position = 0

    def fill(memory):
        nonlocal position
        memory[:] = content[position : position + len(memory)]
        position += len(memory)

    return unpack(header, fill, largest_frame=largest_frame)


def test_a_block_arrives_as_it_was_sent(frames):
    xr.testing.assert_identical(sent(frames), frames)


def test_every_bit_of_a_value_arrives(frames):
    bits = np.random.default_rng(1).integers(0, 2**32, frames["rain_rate"].shape, "u4")
    frames["rain_rate"].values[...] = bits.view("f4")  # NaN with payloads, denormals, -0.0
    arrived = sent(frames)["rain_rate"].values
    np.testing.assert_array_equal(arrived.view("u4"), bits)


@pytest.mark.parametrize(
    "dtype", ["f8", ">f4", "u1", "i2", ">i8", "M8[s]"], ids=lambda dtype: f"as {dtype}"
)
def test_types_arrive_in_the_byte_order_of_the_pipe(frames, dtype):
    frames["rain_rate"] = frames["rain_rate"].fillna(0).astype(dtype)
    arrived = sent(frames)["rain_rate"]
    np.testing.assert_array_equal(arrived, frames["rain_rate"])
    assert arrived.dtype == np.dtype(dtype).newbyteorder("<")


def test_attributes_arrive_with_their_types(frames):
    attrs = {
        "text": "Zürich\nÅ",
        "integer": -3,
        "number": 0.1,
        "nan": float("nan"),
        "infinite": float("-inf"),
        "list": ["a", "b"],
        "float32": np.float32(0.1),
        "range": np.array([0, 250], "u1"),
        "byte": np.int8(-1),
    }
    frames.attrs = frames["crs"].attrs = attrs
    arrived = sent(frames)
    for received in (arrived.attrs, arrived["crs"].attrs):
        assert received.keys() == attrs.keys()
        for name, value in attrs.items():
            np.testing.assert_equal(received[name], value)
            assert type(received[name]) is type(value)
            assert getattr(received[name], "dtype", None) == getattr(value, "dtype", None)


def test_what_no_attribute_can_be_is_left_out_or_made_text(frames):
    frames.attrs = {"a": object(), "b": {"c": 1}, "d": 2**70, "e": None, "f": [[1]], "g": b"x"}
    frames.attrs |= {"h": "bad\udcff\0text", "i": (1.5, 2.5), "j": np.ones((2, 2))}
    assert sent(frames).attrs == {"h": "bad?text", "i": [1.5, 2.5]}


def test_what_describes_a_variable_comes_along_and_nothing_else(frames):
    frames["quality"] = frames["rain_rate"].astype("f4") * 0 + 0.5
    frames["other"] = frames["rain_rate"].copy()
    frames["rain_rate"].attrs["ancillary_variables"] = "quality absent"
    arrived = sent(frames)
    xr.testing.assert_identical(arrived, frames.drop_vars("other"))


def test_text_for_values_is_refused(frames):
    frames["rain_rate"] = frames["rain_rate"].astype("U3")
    with pytest.raises(ValueError, match=r"rain_rate\(time, y, x\) of type <U"):
        sent(frames)


def test_endless_attributes_are_refused(frames):
    frames.attrs["history"] = "x" * 600_000
    with pytest.raises(ValueError, match="attributes take 60"):
        sent(frames)


def rain(header, **changes):
    next(each for each in header["variables"] if each["name"] == "rain_rate").update(changes)


def without(header, *dims):
    kept = [each for each in header["variables"] if not set(dims) & set(each["dims"])]
    header["variables"] = kept


CLAIMS = {
    "no variables": lambda header: header.pop("variables"),
    "variables as text": lambda header: header.update(variables="rain"),
    "a variable as text": lambda header: header["variables"].append("rain"),
    "160 GB": lambda header: rain(header, shape=[1, 200_000, 200_000]),
    "one row more": lambda header: rain(header, shape=[4, 17, 16]),
    "negative sizes": lambda header: rain(header, shape=[4, -16, -16]),
    "no frame": lambda header: rain(header, shape=[0, 16, 16]),
    "fractions for sizes": lambda header: rain(header, shape=[4.0, 16, 16]),
    "truth for a size": lambda header: rain(header, shape=[True, 16, 16]),
    "text for sizes": lambda header: rain(header, shape="416"),
    "objects": lambda header: rain(header, dtype="|O"),
    "records": lambda header: rain(header, dtype="f4,f4"),
    "a type in a list": lambda header: rain(header, dtype=["<f4"]),
    "endless text": lambda header: rain(header, dtype="<U1000000"),
    "other dims": lambda header: rain(header, dims=["time", "x", "y"]),
    "dims in dims": lambda header: rain(header, dims=[["time"], "y", "x"]),
    "a variable twice": lambda header: header["variables"].append(header["variables"][0]),
    "many variables": lambda header: header["variables"].extend(
        {**header["variables"][1], "name": str(number)} for number in range(20)
    ),
    "no time": lambda header: without(header, "time"),
    "no name": lambda header: rain(header, name=""),
    "a name that is no text": lambda header: rain(header, name="rain\udcff"),
    "a coordinate, perhaps": lambda header: rain(header, coordinate="yes"),
    "attributes as a list": lambda header: header.update(attrs=[]),
    "an attribute of objects": lambda header: header["attrs"].update(a={"|O": [1]}),
    "an attribute of two types": lambda header: header["attrs"].update(a={"<f4": 1, "<f8": 1}),
    "an attribute beyond its type": lambda header: header["attrs"].update(a={"|u1": 300}),
    "a nested attribute": lambda header: header["attrs"].update(a=[[1]]),
    "an attribute of two dims": lambda header: header["attrs"].update(a={"<f4": [[1]]}),
    "an empty attribute": lambda header: header["attrs"].update(a=None),
    "a huge integer": lambda header: header["attrs"].update(a=2**64),
    "a zero in a text": lambda header: header["attrs"].update(a="a\0b"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_header_is_refused_before_anything_is_read_if_it_claims(frames, claim):
    def fill(_memory):
        raise AssertionError("memory was taken on the word of a header")

    header = json.loads(json.dumps(pack(frames, "rain_rate")[0]))
    before = json.dumps(header)
    CLAIMS[claim](header)
    assert json.dumps(header) != before
    with pytest.raises((ValueError, TypeError, KeyError, OverflowError)):
        unpack(header, fill, largest_frame=256)


def test_more_frames_than_a_block_has_are_refused(frames):
    many = xr.concat([frames] * 9, "time", data_vars="minimal", coords="minimal")
    with pytest.raises(ValueError, match="too large"):
        sent(many)


def test_a_frame_of_more_pixels_than_allowed_is_refused(frames):
    with pytest.raises(ValueError, match="too large"):
        sent(frames, largest_frame=255)
