import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast import rainrate
from nowcast.conventions import RAIN_RATE, REFLECTIVITY, grid_id, select, variable_of
from nowcast.data.contracts import (
    MANY_WET,
    TABLE,
    Contract,
    ContractError,
    check_contract,
    check_name,
    contract_of,
    load_contracts,
)
from nowcast.data.readers import auxiliary, read
from nowcast.data.readers.mch import rain_rates
from nowcast.data.synthetic import synthesise

KNOWN = list(load_contracts(TABLE).values())
SECOND = np.timedelta64(1, "s")


@pytest.fixture(scope="module")
def frame():
    """One frame of rain in whole hundredths of a millimetre in five minutes, as of KNMI."""
    observed = synthesise(hours=1, size=64, seed=3).isel(time=[6]).load()
    rain = np.random.default_rng(0).integers(0, 80, observed["rain_rate"].shape)
    rain[:, :32] = 0
    values = (rain * 0.12).astype(np.float32)
    values[:, :, :4] = np.nan
    ends = observed["time"].values
    observed = observed.assign_coords(
        time_bnds=(("time", "bnds"), np.stack([ends - 300 * SECOND, ends], axis=1))
    )
    return with_values(observed, values)


def contract(frame, **changes):
    known = {
        "source": "Somewhere",
        "product": "rain",
        "variable": "rain_rate",
        "greatest": 1000.0,
        "reference": "this test",
        "step": 0.12,
        "faintest": (0.12, 0.96),
        "heavy": (100.0, 0.01),
        "grid_ids": (grid_id(frame),),
        "cadence_minutes": 5,
        "interval_minutes": 5,
    }
    return Contract(**{**known, **changes})


def with_values(observed, values):
    name = variable_of(observed)
    return observed.assign({name: observed[name].copy(data=np.asarray(values, np.float32))})


def relabelled(observed):
    """Give copies that are wrong in the ways in which feeds have been wrong, by name."""
    name = variable_of(observed)
    values, other = observed[name].values, observed[name]
    convert = rainrate.to_reflectivity if name == "rain_rate" else rainrate.to_rain_rate
    swapped = REFLECTIVITY if name == "rain_rate" else RAIN_RATE
    label = observed.rename({name: swapped.name})
    label[swapped.name].attrs = {**label[swapped.name].attrs, "units": swapped.units}
    x = observed["x"]
    return {
        "dBZ<->mm/h, values": with_values(observed, convert(other).clip(min=0).values),
        "dBZ<->mm/h, label": label,
        "x12": with_values(observed, values * np.float32(12)),
        "/12": with_values(observed, values / np.float32(12)),
        "x0.1": with_values(observed, values * np.float32(0.1)),
        "offset 32": with_values(observed, values + 32),
        "offset 32 of the wet": with_values(observed, np.where(values > 0, values + 32, values)),
        "another grid": observed.assign_coords(x=x + (x[1] - x[0])),
        "off the cadence": observed.assign_coords(time=observed["time"] + 61 * SECOND),
    }


def test_a_frame_that_keeps_its_contract_passes(frame):
    assert check_contract(frame, contract(frame)) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dBZ<->mm/h, values", "are between, such as"),
        ("dBZ<->mm/h, label", "rain_rate in mm h-1; this is reflectivity in dBZ"),
        ("x12", "wet values here go in steps of 1.44"),
        ("/12", "no rain fainter than 0.12 mm h-1; there is 0.01"),
        ("x0.1", "no rain fainter than 0.12 mm h-1; there is 0.012"),
        ("offset 32", "are between, such as 32"),
        ("offset 32 of the wet", "100.0% of the wet values are between"),
        ("another grid", "64 x 64 pixels"),
        ("off the cadence", "a frame every 5 minutes; one is of"),
    ],
)
def test_what_is_wrong_is_refused_with_what_was_promised_and_came(frame, name, message):
    with pytest.raises(ContractError) as caught:
        check_contract(relabelled(frame)[name], contract(frame))
    assert message in str(caught.value)
    assert "Somewhere rain is known to have" in str(caught.value)
    assert "--contracts FILE" in str(caught.value)


def test_a_whole_offset_is_found_by_the_faintest_rain(frame):
    shifted = relabelled(with_values(frame, np.round(frame["rain_rate"])))["offset 32 of the wet"]
    with pytest.raises(ContractError, match=r"some rain up to 5 mm h-1 .*wet pixels has 33"):
        check_contract(shifted, contract(frame, step=1.0, faintest=(1.0, 5.0)))


def test_more_heavy_rain_than_can_be_is_refused(frame):
    heavier = with_values(frame, frame["rain_rate"] * 25)
    with pytest.raises(ContractError, match=r"at most 1\.00% of the observed pixels above 100 mm"):
        check_contract(heavier, contract(frame, step=0, faintest=()))


def test_values_beyond_the_greatest_and_below_none_are_refused(frame):
    for wrong in (1000.8, -0.12):
        values = frame["rain_rate"].values.copy()
        values[0, 40, 40] = wrong
        with pytest.raises(ContractError, match=f"these reach from .*{wrong:g}|{wrong:g} to"):
            check_contract(with_values(frame, values), contract(frame))


def test_more_of_the_grid_than_the_radars_reach_is_refused(frame):
    observed = float(np.isfinite(frame["rain_rate"]).mean())
    check_contract(frame, contract(frame, coverage=(0.0, observed)))
    with pytest.raises(ContractError, match="of the grid observed"):
        check_contract(frame, contract(frame, coverage=(0.0, observed - 0.01)))


def test_a_median_that_no_rain_has_is_refused(frame):
    values = frame["rain_rate"].values
    middle = float(np.median(values[values > 0]))
    check_contract(frame, contract(frame, middle=(middle / 2, middle)))
    with pytest.raises(ContractError, match="a median of wet values from"):
        check_contract(frame, contract(frame, middle=(middle + 1, middle + 9)))


@pytest.mark.parametrize(
    ("name", "minutes", "fits"),
    [
        ("rain_%Y%m%d%H%M.gif", 0, True),
        ("rain_%Y%m%d%H%M.gif", 60, False),
        ("renamed.gif", 60, True),
    ],
)
def test_a_name_that_holds_another_time_is_refused(frame, name, minutes, fits):
    times = frame["time"].to_index()
    file = (times[0] + pd.Timedelta(minutes=minutes)).strftime(name)
    expected = contract(frame, name="_%Y%m%d%H%M")
    if fits:
        check_name(file, times, expected)
        return
    with pytest.raises(ContractError, match="the nominal time in its file's name"):
        check_name(file, times, expected)


def test_an_interval_of_another_length_is_refused(frame):
    with pytest.raises(ContractError, match="over 60 minutes; one is measured over 5"):
        check_contract(frame, contract(frame, interval_minutes=60))
    bare = frame.drop_vars("time_bnds")
    with pytest.raises(ContractError, match="these have no time_bnds"):
        check_contract(bare, contract(frame))
    assert check_contract(bare, contract(frame, interval_minutes=0)) is None


def test_every_frame_of_a_block_must_be_on_the_cadence(frame):
    later = frame.assign_coords(
        time=frame["time"] + 420 * SECOND, time_bnds=frame["time_bnds"] + 420 * SECOND
    )
    both = xr.concat([frame, later], "time", data_vars=["rain_rate"], coords=["time_bnds"])
    wrong = pd.Timestamp(later["time"].values[0]).isoformat()
    with pytest.raises(ContractError, match=f"one is of {wrong}Z"):
        check_contract(both, contract(frame))


def test_values_that_are_none_of_the_levels_are_refused(frame):
    levels = (8.0, 16.0, *np.arange(20.0, 71.0))
    values = np.random.default_rng(0).choice([0.0, *levels], frame["rain_rate"].shape)
    leveled = with_values(frame, values)
    known = contract(frame, step=0, levels=levels, faintest=(), heavy=())
    assert check_contract(leveled, known) is None
    with pytest.raises(ContractError, match=r"53 levels, from 8 to 70 mm h-1; .* are none"):
        check_contract(with_values(frame, values * 1.01), known)


def test_dry_and_missing_frames_prove_nothing_and_pass(frame):
    for value in (0.0, np.nan):
        same = with_values(frame, np.full(frame["rain_rate"].shape, value))
        assert check_contract(same, contract(frame)) is None


def test_a_few_wet_pixels_are_no_proof_of_a_coarser_step(frame):
    values = np.zeros(frame["rain_rate"].shape)
    values[0, 40, 40:43] = 2.4, 4.8, 7.2
    sparse = with_values(frame, values)
    assert check_contract(sparse, contract(frame)) is None
    values[0, 41, 40:50] = np.arange(1, 11) * 2.4
    with pytest.raises(ContractError, match=r"the 10 wet values here go in steps of 2\.4"):
        check_contract(with_values(frame, values), contract(frame))


@pytest.mark.parametrize("shape", [(765, 700), (3500, 7000)])
def test_a_frame_is_checked_in_a_moment(shape):
    known = contract_of("KNMI", "RAD_NL25_RAU_H1.5_5mi")
    rain = np.random.default_rng(0).integers(0, 200, shape).astype(np.float32)
    rain[rain > 100] = 0  # half of all is wet, more than on any real frame
    coordinates = {
        "time": ("time", np.array(["2024-06-01T12:00"], "datetime64[ns]")),
        "time_bnds": (
            ("time", "bnds"),
            np.array([["2024-06-01T11:55", "2024-06-01T12:00"]], "datetime64[ns]"),
        ),
        "y": ("y", 1000.0 * np.arange(shape[0]), {"units": "m"}),
        "x": ("x", 1000.0 * np.arange(shape[1]), {"units": "m"}),
        "crs": ((), 0, {"grid_mapping_name": "stereographic"}),
    }
    observed = xr.Dataset(
        {"rain_rate": (("time", "y", "x"), rain[None] * np.float32(0.12), RAIN_RATE.attributes)},
        coordinates,
    )
    known = contract(observed, step=known.step)
    start = time.process_time()
    check_contract(observed, known)
    # Measured: 10 ms and 0.6 s; the limit allows for a busy machine.
    assert time.process_time() - start < {765: 0.1, 3500: 3.0}[shape[0]]


def test_a_contract_is_found_whatever_the_capitals_and_signs():
    found = contract_of("knmi", "rad_nl25_rau_h1-5_5mi")
    assert found is contract_of("KNMI", "RAD_NL25_RAU_H1.5_5mi")
    assert found.step == 0.12


def test_what_nothing_is_known_of_has_no_contract():
    assert contract_of("Trento", "reflectivity") is None
    assert contract_of("KNMI", "RAD_NL25_ETH_NA") is None


MINE = """
[[contract]]
source = "KNMI"
product = "RAD_NL25_RAU_H1.5_5mi"
variable = "rain_rate"
greatest = 250
reference = "my own"
grid_ids = ["abcdefabcdef"]
"""


def test_contracts_of_your_own_come_first(tmp_path):
    (tmp_path / "mine.toml").write_text(MINE)
    found = contract_of("KNMI", "RAD_NL25_RAU_H1.5_5mi", tmp_path / "mine.toml")
    assert (found.greatest, found.grid_ids, found.step) == (250, ("abcdefabcdef",), 0.0)
    assert contract_of("DWD", "RY", tmp_path / "mine.toml").step == 0.12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINE + "colour = 3\n", "colour unknown; known are source, product"),
        (MINE.replace("greatest", "#"), "greatest absent"),
        (MINE.replace("rain_rate", "rain"), "'rain' is none of rain_rate, reflectivity"),
        (MINE + "heavy = [100]\n", "faintest, heavy, coverage, middle are pairs"),
        (MINE + MINE, "two contracts for one source and product"),
        (MINE.replace("[[contract]]", "[[contracts]]"), "contracts is unknown"),
        ("[[contract]\n", "Expected"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"mine\.toml") as caught:
        load_contracts(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: f"{known.source}-{known.product}")
def test_the_contracts_of_nowcast_make_sense(known):
    assert known.grid_ids
    assert known.cadence_minutes
    assert known.reference
    assert known.step > 0 or known.levels or known.faintest
    assert known.faintest[0] < known.faintest[1] < known.heavy[0] < known.greatest


def test_the_levels_of_meteoswiss_are_those_of_its_reader():
    table = rain_rates()
    expected = table[(table > 0) & (table <= 1000)]
    np.testing.assert_allclose(contract_of("MeteoSwiss", "AQC").levels, expected, rtol=1e-6)


def real_frames(folder):
    """Give every frame of a family, in memory, with the file that it is in."""
    for path in sorted(folder.iterdir()):
        if auxiliary(path):
            continue
        observed = read(path)
        observed = select(observed, variable_of(observed)).load()
        for position in range(observed.sizes["time"]):
            yield path, observed.isel(time=[position])


def families(shared_data):
    folders = sorted(path for path in (shared_data / "radar").iterdir() if path.is_dir())
    assert len(folders) == 8
    return folders


@pytest.mark.proof
def test_every_real_frame_keeps_its_contract_and_none_does_once_it_is_relabelled(shared_data):
    """A frame with fewer wet pixels than say something may pass; a dry one does by right."""
    counted = {}
    for folder in families(shared_data):
        for path, observed in real_frames(folder):
            known = contract_of(observed.attrs["source"], observed.attrs["product"])
            check_contract(observed, known)
            wet = int((observed[known.variable] > 0).sum())
            for name, wrong in relabelled(observed).items():
                passed = _passes(wrong, known)
                kind = "missed" if passed and wet else "dry" if passed else "caught"
                key = (known.source, known.product, name, kind)
                counted[key] = counted.get(key, 0) + 1
                assert not passed or wet < MANY_WET, f"{name} of {path.name} was not noticed"
    for key, number in counted.items():
        print(*key, number)
    assert sum(number for key, number in counted.items() if key[-1] == "missed") <= 10


def _passes(observed, known):
    try:
        check_contract(observed, known)
    except ContractError:
        return False
    return True


def test_the_table_lies_beside_the_module():
    assert Path(TABLE).name == "contracts.toml"
    assert len(KNOWN) == 11
