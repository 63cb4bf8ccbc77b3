"""`tersegrad demo --federated` in a plain loop; on Flower's engine in `test_flower_engines.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_demo import needs_packages, tersegrad

import tersegrad as tg


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What two rounds on the digits printed, and the folder they filled."""
    out = tmp_path_factory.mktemp("federated")
    options = ("--data", "digits", "--rounds", "2", "--engine", "plain", "--out", str(out))
    return tersegrad("demo", "--federated", *options), out


@needs_packages
def test_it_prints_one_row_for_each_way_and_what_it_shows(small: tuple[str, Path]) -> None:
    printed, out = small
    rows = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    assert rows == [
        "float32",
        "up TopK(5 %) + sign",
        "up TopK(1 %) + sign",
        "both ways TopK(5 %) + 4 bit",
    ]
    results = json.loads((out / "federated.json").read_text())
    assert printed.splitlines()[-1] == results["conclusion"]
    assert (out / "federated.png").read_bytes().startswith(b"\x89PNG\r\n")


@needs_packages
def test_it_counts_every_byte_of_the_messages(small: tuple[str, Path]) -> None:
    results = json.loads((small[1] / "federated.json").read_text())
    plain, up5, _, both = results["methods"]
    side = 8 // 4
    sizes = (144, 16, 4608, 32, 32 * side * side * 60, 60, 600, 10)
    whole = 10 * 4 * sum(sizes)
    assert [point[1:] for point in plain["curve"]] == [[whole, whole]] * 2
    codec = tg.TopK(density=0.05, values=tg.Sign(block_size=65536))
    bodies = sum(codec.body_size(size) for size in sizes)
    for _, up, down in up5["curve"]:
        assert 10 * bodies < up <= 10 * (bodies + 100)  # header, codec table, a byte a tensor
        assert down == whole
    assert both["curve"][0][2] == whole  # the first model travels whole
    assert both["curve"][1][2] < whole / 20


def test_what_does_not_fit_is_named() -> None:
    for option, value, words in (
        ("--engine", "ray", "engine must be auto, flower or plain"),
        ("--clients", "1", "clients must be at least 2"),
        ("--rounds", "0", "rounds must be at least 1"),
    ):
        assert words in tersegrad("demo", "--federated", option, value, code=2)
