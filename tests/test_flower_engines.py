"""The example app on Flower's simulation engine, and a deployment on loopback with its bytes counted on the sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="make test-federated runs these where Flower is installed")

from tcp_counter import counting, free_port, wait_for

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "flower"
SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where Flower keeps its configuration and the apps that it installed."""
    (tmp_path / "config.toml").write_text("")
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    """Nothing outside this machine is asked, nothing outside `home` is written."""
    return {
        **os.environ,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # at Ray's 15 a busy machine lets the clients starve
        "OMP_NUM_THREADS": "1",
    }


def flwr_run(app: Path, home: Path, *arguments: str) -> str:
    """What `flwr run` printed until the run ended."""
    done = subprocess.run(
        [SCRIPTS / "flwr", "run", str(app), *arguments, "--stream"],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@contextmanager
def running(home: Path, program: str, *arguments: object) -> Iterator[None]:
    """A process of Flower's and its children, which are gone afterwards; its output goes to a file in `home`."""
    with (home / f"{program}-{free_port()}.log").open("w") as log:
        process = subprocess.Popen(
            [SCRIPTS / program, *map(str, arguments)],
            env=environment(home),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            for kind in (signal.SIGINT, signal.SIGKILL):
                try:
                    os.killpg(process.pid, kind)
                    process.wait(20)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    pass


def superlink(home: Path, name: str, port: int) -> None:
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{name}"\n[superlink.{name}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )


def test_the_example_learns_on_the_simulation_engine(home: Path) -> None:
    port = free_port()
    superlink(home, "simulation", port)
    with running(home, "flower-superlink", "--insecure", "--simulation", "--port", port):
        wait_for(port)
        printed = flwr_run(
            EXAMPLE,
            home,
            "--federation-config",
            "num-supernodes=4 client-resources-num-cpus=1",
            "--run-config",
            "num-server-rounds=6",
        )
    found = re.findall(r"round (\d): accuracy ([\d.]+), ([\d,]+) bytes up, ([\d,]+) down", printed)
    assert [number for number, *_ in found] == list("123456"), printed
    assert float(found[-1][1]) > 0.6  # ten classes
    up, down = ([int(row[column].replace(",", "")) for row in found] for column in (2, 3))
    whole = 4 * 4 * (64 * 256 + 256 + 256 * 256 + 256 + 2560 + 10)  # four clients, float32
    assert set(up) == {up[0]}
    assert up[0] < whole / 50
    assert down[0] > whole  # the first model travels whole
    assert max(down[1:]) < whole / 50


def test_a_deployment_sends_few_bytes_through_its_sockets(home: Path) -> None:
    port = free_port()
    superlink(home, "deployment", port)
    with ExitStack() as stack:
        stack.enter_context(running(home, "flower-superlink", "--insecure", "--port", port))
        wait_for(port)
        counter = stack.enter_context(counting(port))
        for node in range(2):
            config = f"partition-id={node} num-partitions=2"
            arguments = ("--insecure", "--superlink", f"127.0.0.1:{counter.port}")
            more = ("--port", free_port(), "--node-config", config)
            stack.enter_context(running(home, "flower-supernode", *arguments, *more))
        passed = {}
        for compress in ("true", "false"):
            before = counter.up, counter.down
            printed = flwr_run(HERE / "flower_app", home, "--run-config", f"compress={compress}")
            assert "finished" in printed, printed
            passed[compress] = counter.up - before[0], counter.down - before[1]
            if compress == "true":
                rounds = re.findall(r"^round .*'tersegrad-rejected': (\d+)", printed, re.MULTILINE)
                assert rounds == ["0"] * 2, printed
    whole = 2 * 2 * 4 * 300_000  # two nodes, two rounds, float32
    print(passed, file=sys.stderr)
    assert min(passed["false"]) > whole
    # Flower's polling is most of what is left on the way up; on the way down the first model travels whole, half of all.
    assert passed["true"][0] < whole / 5
    assert passed["true"][1] < 0.75 * whole


def test_the_demo_trains_on_the_simulation_engine(home: Path) -> None:
    options = ("--data", "digits", "--rounds", "2", "--clients", "3", "--engine", "flower")
    done = subprocess.run(
        [sys.executable, "-m", "tersegrad", "demo", "--federated", *options, "--out", str(home)],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Flower's simulation engine" in done.stdout
    rows = json.loads((home / "federated.json").read_text())["methods"]
    assert all(len(row["curve"]) == 2 for row in rows)
    assert all(row["ratio_up"] > 20 for row in rows[1:])
    assert rows[3]["curve"][1][2] < rows[0]["curve"][1][2] / 10  # changes, not the model
