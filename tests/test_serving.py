import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pytest

from nowcast.serving import EndpointNowcaster, ServingError, endpoint
from nowcast.testing import check_nowcaster

LEADS = pd.to_timedelta([10, 20], unit="min")


@pytest.fixture(scope="module")
def block():
    """What ends the server when it is closed, by the last test or else by this."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def served(trained, block, tmp_path_factory):
    tracking, made = trained
    log = tmp_path_factory.mktemp("serving") / "endpoint.log"
    address = block.enter_context(endpoint(made.uri, tracking, log=log))
    return made.nowcaster, EndpointNowcaster(made.nowcaster.settings, address)


def _post(address, body):
    request = urllib.request.Request(
        f"{address}/invocations", data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _strict(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_endpoint_gives_the_nowcast_of_the_nowcaster(served, small_observed):
    local, remote = served
    times = small_observed["time"].to_index()[4:6]
    np.testing.assert_allclose(
        remote.nowcast(small_observed, base_times=times, lead_times=LEADS)["rain_rate"],
        local.nowcast(small_observed, base_times=times, lead_times=LEADS)["rain_rate"],
        atol=1e-5,
    )


def test_an_endpoint_keeps_the_contract_of_a_nowcaster(served, small_observed):
    check_nowcaster(served[1], small_observed)


def test_of_probabilities_the_endpoint_gives_the_median_alone(
    small_config, small_observed, tmp_path, monkeypatch
):
    """What is served answers in this process, by way of JSON."""
    from nowcast.served_model import ServedNowcaster
    from nowcast.training import fit, prepare

    head = ["network.head=exceedance", "network.levels=[0.1,0.5,2.0]", "training.loss=crps"]
    config = small_config.replace([*head, "training.steps_per_epoch=1"])
    local = fit(config, prepare(config, small_observed, work=tmp_path), verbose=0)
    served = ServedNowcaster()
    served._nowcaster = local

    def answer(_, content):
        predictions = served.predict(None, np.array(content["inputs"], np.float32))
        return json.loads(json.dumps({"predictions": predictions.tolist()}))

    monkeypatch.setattr(EndpointNowcaster, "_post", answer)
    times = small_observed["time"].to_index()[4:6]
    remote = EndpointNowcaster(local.settings, "http://127.0.0.1:9")
    here = local.nowcast(small_observed, base_times=times, lead_times=LEADS)
    there = remote.nowcast(small_observed, base_times=times, lead_times=LEADS)
    assert set(there) == {"rain_rate"}
    np.testing.assert_allclose(there["rain_rate"], here["rain_rate"], atol=1e-5)
    assert "probability_of_exceedance" in here
    check_nowcaster(remote, small_observed)


def test_ping_and_version_answer(served):
    for path in ("ping", "version"):
        with urllib.request.urlopen(f"{served[1].address}/{path}", timeout=10) as answer:
            assert answer.status == 200


def test_missing_travels_as_null_both_ways(served):
    local, remote = served
    frames = np.ones((1, 3, 16, 16))
    frames[0, 1, 2, 3] = np.nan
    inputs = [[[[None if v != v else v for v in row] for row in f] for f in w] for w in frames]
    status, text = _post(remote.address, json.dumps({"inputs": inputs}).encode())
    assert status == 200
    answer = _strict(text)["predictions"]
    assert answer[0][0][2][3] is None
    assert answer[0][0][2][4] == pytest.approx(float(local.forecast(frames)[0, 0, 2, 4]), abs=1e-5)


@pytest.mark.parametrize("value", ["-1.0", "1e400", "2000", "Infinity"])
def test_a_value_out_of_range_is_a_bad_request_without_traceback(served, value):
    row = ",".join(["0.0"] * 15 + [value])
    frame = "[" + ",".join([f"[{row}]"] * 16) + "]"
    body = '{"inputs": [[' + ",".join([frame] * 3) + "]]}"
    status, text = _post(served[1].address, body.encode())
    assert status == 400
    assert "outside [0.0, 1000.0] mm h-1" in text
    assert "Traceback" not in text
    assert "site-packages" not in text


def test_a_wrong_number_of_frames_is_a_bad_request(served):
    body = json.dumps({"inputs": np.zeros((1, 2, 16, 16)).tolist()}).encode()
    status, _ = _post(served[1].address, body)
    assert status == 400


def test_a_port_in_use_is_named(trained, tmp_path):
    tracking, made = trained
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ServingError, match=f"port {port} on 127.0.0.1 is taken"),
            endpoint(made.uri, tracking, log=tmp_path / "log", port=port),
        ):
            pass


def test_a_number_that_is_no_port_is_told(trained, tmp_path):
    tracking, made = trained
    with (
        pytest.raises(ServingError, match="a port is from 1 to 65535; received 99999"),
        endpoint(made.uri, tracking, log=tmp_path / "log", port=99999),
    ):
        pass


def test_an_endpoint_that_is_not_there_is_named(trained, small_observed):
    _, made = trained
    remote = EndpointNowcaster(made.nowcaster.settings, "http://127.0.0.1:9")
    with pytest.raises(ServingError, match=r"http://127.0.0.1:9 does not answer.*nowcast serve"):
        remote.nowcast(
            small_observed, base_times=small_observed["time"].to_index()[4:5], lead_times=LEADS
        )


def test_no_server_is_left_behind(served, block):
    ping = f"{served[1].address}/ping"
    urllib.request.urlopen(ping, timeout=10).close()
    block.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(ping, timeout=2)


@pytest.mark.proof
def test_a_server_ends_with_the_process_that_started_it_even_if_that_is_killed(trained, tmp_path):
    tracking, made = trained
    code = f"""
import time
from pathlib import Path
from nowcast.serving import endpoint
from nowcast.tracking import Tracking
with endpoint({made.uri!r}, Tracking(Path({str(tracking.work)!r})), log=Path("log")) as address:
    print(address, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as child:
        address = child.stdout.readline().strip()
        urllib.request.urlopen(f"{address}/ping", timeout=10).close()
        child.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/ping", timeout=2).close()
        except OSError:
            break
        time.sleep(0.2)
    else:
        pytest.fail(f"{address} still answers")
