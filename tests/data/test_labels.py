import numpy as np
import pytest
import xarray as xr

from nowcast.data.labels import UNKNOWN, classes_of, labels_of, with_labels
from nowcast.data.observations import fingerprint, open_observations
from nowcast.data.synthetic import synthesise


@pytest.fixture
def labelled():
    return with_labels(synthesise(hours=1, size=8), np.array([0, 1, 1, 0, 2, -1, 0]), "abc")


def test_labels_come_back_as_places_among_their_classes(labelled):
    assert classes_of(labelled) == ("a", "b", "c")
    assert labels_of(labelled).tolist() == [0, 1, 1, 0, 2, UNKNOWN, 0]


def test_flags_may_have_any_values_and_a_fill_value_is_no_label(labelled):
    flags = {"flag_values": np.array([10, 20]), "flag_meanings": "dry wet"}
    values = ("time", [10, 20, np.nan, 20, 30, 10, 10], flags)
    assert labels_of(labelled.assign_coords(label=values)).tolist() == [0, 1, -1, 1, -1, 0, 0]


def test_labels_survive_a_file_and_several_files(labelled, tmp_path):
    labelled["time"].encoding["units"] = "seconds since 1970-01-01"
    labelled.isel(time=slice(4)).to_netcdf(tmp_path / "a.nc")
    labelled.isel(time=slice(4, None)).to_netcdf(tmp_path / "b.nc")
    opened = open_observations([tmp_path / "b.nc", tmp_path / "a.nc"])
    assert classes_of(opened) == ("a", "b", "c")
    assert labels_of(opened).tolist() == [0, 1, 1, 0, 2, UNKNOWN, 0]


def test_a_file_without_labels_joined_to_one_with_labels_has_none(labelled, tmp_path):
    labelled["time"].encoding["units"] = "seconds since 1970-01-01"
    labelled.isel(time=slice(4)).to_netcdf(tmp_path / "a.nc")
    labelled.isel(time=slice(4, None)).drop_vars("label").to_netcdf(tmp_path / "b.nc")
    assert classes_of(open_observations([tmp_path / "a.nc", tmp_path / "b.nc"])) == ()


def test_something_else_of_that_name_in_a_file_is_no_label(labelled, tmp_path):
    del labelled["label"].attrs["flag_meanings"]
    labelled["time"].encoding["units"] = "seconds since 1970-01-01"
    labelled.to_netcdf(tmp_path / "a.nc")
    assert classes_of(open_observations(tmp_path / "a.nc")) == ()


def test_the_fingerprint_covers_labels_and_is_as_before_without_them(labelled):
    bare = labelled.drop_vars("label")
    other = labelled.assign_coords(label=labelled["label"].copy(data=np.zeros(7, int)))
    renamed = with_labels(bare, labelled["label"].values, "abd")
    assert fingerprint(bare) == fingerprint(synthesise(hours=1, size=8))
    assert len({fingerprint(each) for each in (bare, labelled, other, renamed)}) == 4


@pytest.mark.parametrize("classes", [["one"], ["one", "one"], ["one", "two words"], ["one", ""]])
def test_classes_that_cannot_be_told_apart_are_refused(labelled, classes):
    with pytest.raises(ValueError, match="two or more different words"):
        with_labels(labelled, np.zeros(7), classes)


def test_flags_without_meanings_are_refused(labelled):
    bare = labelled.assign_coords(label=("time", np.zeros(7, int)))
    with pytest.raises(ValueError, match="as many flag_values as flag_meanings"):
        classes_of(bare)


def test_observations_without_labels_have_no_classes():
    assert classes_of(xr.Dataset()) == ()
