import gzip
import json
import os
import subprocess
import sys
import zipfile

import bom_sample
import h5py
import knmi_sample
import numpy as np
import odim_sample
import pytest
import xarray as xr

from nowcast.data.readers import READERS, auxiliary, find_reader, known_readers, read, sniff

BEGINNINGS = {
    "radolan": b"RW220050100001118BY1620153VS 3SW   2.21.0PR E-01INT  60GP 900x 900",
    "fmi_pgm": b"P5\n# obstime 201609281500\n760 1226\n255\n",
    "mch": b"GIF89a\xc6\x02\x80\x02",
    "stage4": b"GRIB\x00\x10\x00\x01",
    "mrms": b"GRIB\x00\x00\xd1\x02",
    "fmi_geotiff": b"II*\0\x08\0\0\0",
    "cf": b"CDF\x01\0\0\0\0",
}
FAMILIES = {
    "bom_netcdf": "bom",
    "fmi_pgm": "fmi_pgm",
    "knmi_hdf5": "knmi",
    "mch_gif": "mch",
    "meteonet_npz": "meteonet",
    "mrms_grib2": "mrms",
    "odim_hdf5": "odim",
    "radolan": "radolan",
}
# A package of someone else: what is installed of it is its code and this folder.
METADATA = "Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
CODE = """
import xarray as xr

def read_it(path):
    return xr.Dataset(attrs={{"title": "read by {package}"}})

def recognises(start, path):
    return {recognises}

read_it.recognises = recognises
"""


def write_zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


@pytest.mark.parametrize("name", BEGINNINGS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
def test_a_file_is_told_by_its_first_bytes(tmp_path, name, packed):
    content = BEGINNINGS[name] + bytes(10_000)
    path = tmp_path / "frame"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert sniff(path) == name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"G",
        b"GRIB",
        b"GRIB\0\0\0\x03",
        b"P6\n",
        b"RW22005010",
        b"\x1f\x8b",
        b"\x1f\x8b\x08" * 9,
    ],
)
def test_a_beginning_that_is_none_of_these_is_refused(tmp_path, content):
    path = tmp_path / "frame"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a radar file nowcast knows"):
        sniff(path)


def test_hdf5_files_are_told_by_what_they_hold(tmp_path):
    knmi = knmi_sample.write_knmi(tmp_path / "knmi", np.zeros((2, 3)), "2010-08-26T00:05")
    odim = odim_sample.write_odim(tmp_path / "odim", np.zeros((2, 3)))
    bom = bom_sample.write_bom(tmp_path / "bom", np.zeros((4, 4)))
    with h5py.File(tmp_path / "sevir", "w") as file:
        file["id"], file["vil"] = np.zeros(1), np.zeros((1, 2, 2, 2))
    xr.Dataset({"rain": ("time", [0.0])}, {"time": [0]}).to_netcdf(tmp_path / "cf")
    paths = {"knmi": knmi, "odim": odim, "bom": bom}
    for name in ("knmi", "odim", "bom", "sevir", "cf"):
        assert sniff(paths.get(name, tmp_path / name)) == name


def test_odim_is_told_without_its_conventions_too(tmp_path):
    with h5py.File(tmp_path / "frame.h5", "w") as file:
        file.create_group("what").attrs["object"] = np.bytes_("COMP")
    assert sniff(tmp_path / "frame.h5") == "odim"


def test_no_link_is_followed_to_tell_a_file(tmp_path):
    knmi_sample.write_knmi(tmp_path / "real.h5", np.zeros((2, 3)), "2010-08-26T00:05")
    with h5py.File(tmp_path / "links.h5", "w") as file:
        for name in ("image1", "geographic", "what", "id", "vil"):
            file[name] = h5py.ExternalLink(str(tmp_path / "real.h5"), "image1")
        file["loop"] = h5py.SoftLink("/loop")
    with pytest.raises(ValueError, match="is not a radar file"):
        sniff(tmp_path / "links.h5")


def test_an_npz_file_is_told_by_its_members(tmp_path):
    assert sniff(write_zip(tmp_path / "f.npz", "data.npy", "dates.npy", "miss_dates.npy")) == (
        "meteonet"
    )
    for names in (["data.npy"], ["lats.npy", "lons.npy"], []):
        with pytest.raises(ValueError, match="is not a radar file"):
            sniff(write_zip(tmp_path / "other.npz", *names))


def test_the_grid_of_meteonet_is_no_frame_and_no_stranger(tmp_path):
    grid = write_zip(tmp_path / "radar_coords_NW.npz", "lats.npy", "lons.npy")
    assert auxiliary(grid) == "grid of the MeteoNet frames beside it"
    frames = write_zip(tmp_path / "rainfall.npz", "data.npy", "dates.npy")
    text = tmp_path / "notes.txt"
    text.write_text("rain")
    assert [auxiliary(path) for path in (frames, text, tmp_path)] == ["", "", ""]


def test_the_catalog_of_sevir_is_no_frame_and_no_stranger(tmp_path):
    catalog = tmp_path / "CATALOG.csv"
    catalog.write_text("id,file_name,file_index,img_type,time_utc,minute_offsets\nS1,a.h5,0,vil\n")
    assert auxiliary(catalog) == "catalog of the SEVIR events beside it"
    catalog.write_text("id,file_name\nfile_index,minute_offsets\n")
    assert auxiliary(catalog) == ""


def test_every_real_file_is_told_by_its_content(shared_data):
    for folder, name in FAMILIES.items():
        paths = sorted((shared_data / "radar" / folder).iterdir())
        assert {sniff(path) for path in paths if not auxiliary(path)} == {name}
    for pattern in ("taasrad19/*.nc", "era5/*.nc"):
        assert {sniff(path) for path in shared_data.glob(pattern)} == {"cf"}


def test_the_only_real_file_without_frames_is_the_grid_of_meteonet(shared_data):
    paths = [path for path in shared_data.glob("radar/*/*") if auxiliary(path)]
    assert [path.name for path in paths] == ["radar_coords_NW.npz"]


@pytest.mark.parametrize("name", READERS)
def test_every_reader_is_there(name):
    facts = READERS[name]
    assert callable(find_reader(name))
    assert facts.function == f"{find_reader(name).__module__}:{find_reader(name).__name__}"
    assert facts.description


def test_readers_import_no_format_library(tmp_path):
    script = (
        "import importlib, sys; from nowcast.data.readers import READERS\n"
        "for facts in READERS.values(): importlib.import_module(facts.function.split(':')[0])\n"
        "print({'h5py', 'netCDF4', 'zarr', 'pyproj', 'PIL', 'rasterio', 'wradlib'} "
        "& {name.split('.')[0] for name in sys.modules})"
    )
    assert run(script, tmp_path) == "set()"


def test_telling_a_file_by_its_first_bytes_loads_neither_numpy_nor_xarray(tmp_path):
    (tmp_path / "frame").write_bytes(BEGINNINGS["mrms"])
    script = (
        f"import pathlib, sys; from nowcast.data.readers import sniff\n"
        f"print(sniff(pathlib.Path({str(tmp_path / 'frame')!r})),"
        " {'numpy', 'xarray', 'pandas', 'h5py'} & set(sys.modules))"
    )
    assert run(script, tmp_path) == "mrms set()"


def install(folder, package, *, name="theirs", recognises="False", code=CODE):
    """Lay a package with one reader into a folder as pip would."""
    (folder / f"{package}.py").write_text(code.format(package=package, recognises=recognises))
    described = folder / f"{package}-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(METADATA.format(package=package))
    entry = f"[nowcast.readers]\n{name} = {package}:read_it\n"
    (described / "entry_points.txt").write_text(entry)


def run(script, folder):
    """Run a script in a fresh interpreter that finds the packages in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def told(folder, path, *, reader=""):
    """Read a file in a fresh interpreter; give its title or the refusal, names and warnings."""
    script = f"""
import json, logging
from nowcast.data import readers
warned = []
class Kept(logging.Handler):
    def emit(self, record):
        warned.append(record.getMessage())
logging.getLogger("nowcast").addHandler(Kept())
try:
    title = readers.read({str(path)!r}, reader={reader!r}).attrs["title"]
except ValueError as error:
    title = str(error)
print(json.dumps([title, sorted(readers.known_readers()), warned]))
"""
    return json.loads(run(script, folder))


@pytest.fixture
def strange(tmp_path):
    path = tmp_path / "strange.dat"
    path.write_bytes(b"STRANGE\n")
    return path


def test_a_reader_of_another_package_is_found_by_name(tmp_path, strange):
    install(tmp_path, "strange_radar")
    title, names, warned = told(tmp_path, strange, reader="theirs")
    assert title == "read by strange_radar"
    assert names == sorted([*READERS, "theirs"])
    assert warned == []


def test_a_reader_of_another_package_recognises_its_files(tmp_path, strange):
    install(tmp_path, "strange_radar", recognises="start.startswith(b'STRANGE') and path.exists()")
    assert told(tmp_path, strange)[0] == "read by strange_radar"
    strange.write_bytes(b"familiar")
    assert "is not a radar file nowcast knows" in told(tmp_path, strange)[0]


def test_a_netcdf_file_may_be_that_of_another_package(tmp_path):
    install(tmp_path, "strange_radar", recognises="start.startswith(b'CDF')")
    path = tmp_path / "frame.nc"
    path.write_bytes(BEGINNINGS["cf"])
    assert told(tmp_path, path)[0] == "read by strange_radar"


def test_files_of_nowcast_are_never_asked_of_other_packages(tmp_path):
    install(tmp_path, "greedy", recognises="True")
    path = knmi_sample.write_knmi(tmp_path / "f.h5", np.zeros((2, 3)), "2010-08-26T00:05")
    assert told(tmp_path, path)[0].startswith("KNMI")


def test_a_reader_of_nowcast_cannot_be_shadowed(tmp_path):
    install(tmp_path, "impostor", name="knmi", recognises="True")
    path = knmi_sample.write_knmi(tmp_path / "f.h5", np.zeros((2, 3)), "2010-08-26T00:05")
    title, names, warned = told(tmp_path, path, reader="knmi")
    assert title.startswith("KNMI")
    assert names == sorted(READERS)
    assert warned == [
        "the reader 'knmi' of the package impostor is left out: there is one of this name already"
    ]


def test_of_two_packages_with_one_name_one_is_left_out(tmp_path, strange):
    install(tmp_path, "one_radar")
    install(tmp_path, "two_radar")
    title, names, warned = told(tmp_path, strange, reader="theirs")
    assert title == "read by one_radar"
    assert names.count("theirs") == 1
    assert "of the package two_radar is left out" in warned[0]


def test_a_broken_package_is_told_of_and_stops_no_other(tmp_path, strange):
    install(tmp_path, "broken_radar", name="broken", code="raise RuntimeError('no licence')")
    install(tmp_path, "failing_radar", name="failing", recognises="1 / 0")
    install(tmp_path, "working_radar", recognises="True")
    title, names, warned = told(tmp_path, strange)
    assert title == "read by working_radar"
    assert {"broken", "failing", "theirs"} < set(names)
    assert warned[0] == (
        "the reader 'broken' of the package broken_radar cannot be loaded: RuntimeError: "
        "no licence; its files are not recognised"
    )
    assert "'failing' cannot tell whether" in warned[1]
    assert "ZeroDivisionError" in warned[1]
    refusal = told(tmp_path, strange, reader="broken")[0]
    assert "broken_radar cannot be loaded: RuntimeError: no licence" in refusal


def test_here_are_the_readers_of_nowcast_alone():
    assert known_readers() == READERS


def test_an_unknown_reader_lists_the_known(tmp_path):
    path = tmp_path / "frame"
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="no reader 'opera'; known readers: bom, cf, fmi_geotiff"):
        read(path, reader="opera")
