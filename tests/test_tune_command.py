"""The command `tersegrad tune`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from arrays import gradient

import tersegrad as tg
from tersegrad.tune.measure import codec_line

SMALL = {"weight": gradient(6000).reshape(60, 100), "bias": gradient(10, 1)}


def command(*arguments: str | Path, code: int = 0, hide: tuple[str, ...] = ()) -> tuple[str, str]:
    """Standard output and standard error of ``tersegrad``, with packages hidden as if not installed."""
    program = f"import sys\nfor name in {hide}: sys.modules[name] = None\nfrom tersegrad.cli import main\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def update_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("update") / "update.npz"
    np.savez(path, **SMALL)
    return path


@pytest.mark.parametrize("hide", [(), ("rich", "matplotlib")], ids=["with rich", "plain"])
def test_the_command_prints_a_table_that_marks_the_best(
    hide: tuple[str, ...], update_file: Path, tmp_path: Path
) -> None:
    limits = ("--uplink", "10kbit", "--deadline", "1s", "--out", tmp_path)
    printed, errors = command("tune", update_file, *limits, hide=hide)
    lines = printed.splitlines()
    assert lines[0] == "6,010 entries in 2 tensors, 24 KB a round"
    (best,) = [line for line in lines if line.strip().startswith("* ") and "best" not in line]
    results = json.loads((tmp_path / "results.json").read_text())
    codec = tg.Codec.from_dict(results["best"]["codec"])
    assert codec_line(codec) in best
    assert lines[-1] == f"  codec = {codec_line(codec, 'tg.')}"
    assert sum(1 for r in results["rows"] if not r["fits"]) == sum(
        1 for line in lines if line.strip().startswith("- ")
    )
    for r in results["rows"]:
        assert r["fits"] == (r["seconds"] <= 1)
    picture = tmp_path / "rate-distortion.png"
    if hide:
        assert "pip install 'tersegrad[cli]'" in errors
        assert not picture.exists()
    else:
        assert picture.read_bytes().startswith(b"\x89PNG\r\n")
        assert picture.stat().st_size > 20_000


def test_the_command_prints_json_for_machines(update_file: Path, tmp_path: Path) -> None:
    limits = ("--max-bytes", "2KB", "--json", "--out", tmp_path)
    printed, _ = command("tune", update_file, update_file, *limits)
    results = json.loads(printed)
    assert results["update"] == {"tensors": 2, "entries": 6010, "bytes": 24040, "rounds": 2}
    assert results["best"]["nbytes"] <= 2000
    assert all(r["feedback_nmse"] == r["error"] for r in results["rows"])
    assert eval(results["best"]["python"], {"tg": tg}) == tg.Codec.from_dict(
        results["best"]["codec"]
    )


def test_the_command_says_when_nothing_fits(update_file: Path, tmp_path: Path) -> None:
    limits = ("--max-bytes", "100B", "--out", tmp_path)
    printed, errors = command("tune", update_file, *limits, code=1)
    assert "nothing fits 100 B: the smallest candidate, " in errors
    assert "codec = " not in printed
    assert json.loads((tmp_path / "results.json").read_text())["best"] is None


def test_the_command_measures_without_a_budget(update_file: Path, tmp_path: Path) -> None:
    printed, _ = command("tune", update_file, "--out", tmp_path)
    assert "To have one chosen" in printed
    assert "codec = " not in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("absent.npz",), "there is no such file"),
        (("absent.npz", "--uplink", "fast"), "'fast' is not a speed"),
        (("absent.npz", "--deadline", "5s"), "a deadline needs an uplink"),
    ],
)
def test_the_command_refuses_in_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    _, errors = command("tune", *arguments, code=2)
    assert errors.startswith("tersegrad: ")
    assert sentence in errors
    assert errors.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_a_sentence(update_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _, errors = command("tune", update_file, "--out", tmp_path / "file", code=2)
    assert "cannot write to" in errors.splitlines()[-1]


def test_updates_that_cancel_are_reported_all_the_same(tmp_path: Path) -> None:
    files = [tmp_path / "there.npy", tmp_path / "back.npy"]
    for path, sign in zip(files, (1, -1), strict=True):
        np.save(path, sign * gradient(5000))
    limits = ("--max-bytes", "1KB", "--json", "--out", tmp_path)
    printed, _ = command("tune", *files, *limits)
    rows = json.loads(printed, parse_constant=pytest.fail)["rows"]
    (masks,) = {r["error"] for r in rows if r["codec"]["codec"] == "RandomK"}
    assert (
        masks is None
    )  # two masks cannot cancel: an infinite share of nothing, which JSON cannot hold
    assert (tmp_path / "rate-distortion.png").exists()


def test_help_teaches() -> None:
    text, _ = command("tune", "--help")
    for word in ("--uplink 2mbit --deadline 5s", "--max-bytes", "exit status", "NMSE"):
        assert word in text
