"""Which rows did a change make faster or slower, beyond the noise?

    python benchmarks/compare.py HEAD~1 HEAD
    python benchmarks/compare.py main my-branch --only select --seconds 60

Both commits are checked out and built under a temporary folder. Each runs in a process of its own
with the rows of *this* folder; a third process runs BASE once more, as a control. The three take
turns row by row, so that what disturbs one disturbs all.

A row counts as changed when time(HEAD) / time(BASE) differs from 1 by more than 2 %, and the
99.9 % confidence interval of its median over the rounds lies apart from 1 and from that of the
control: identical code in another process differs too, by the luck of where its memory lies.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def build(commit: str, folder: Path) -> Path:
    """Check a commit out into `folder` and build it; gives the folder to import from."""
    run("git", "-C", REPOSITORY, "worktree", "add", "--detach", "--force", folder, commit)
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir")
    run(
        "cmake", "-G", "Ninja", "-S", folder, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}",
        "-DTERSEGRAD_CUDA=OFF",
    )  # fmt: skip
    run("cmake", "--build", folder / "build")
    package = folder / "python" / "tersegrad"
    modules = list((folder / "build").rglob("_core*.so"))
    if len(modules) != 1:
        sys.exit(f"{commit}: expected one native module, found {modules}")
    (package / modules[0].name).write_bytes(modules[0].read_bytes())
    return folder / "python"


class Worker:
    """A process that times rows on request, importing tersegrad from `path`."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        threads = str(options.threads)
        environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": threads}
        environment.pop("TERSEGRAD_KERNELS", None)
        command = [sys.executable, str(HERE / "compare_worker.py"), str(options.entries), threads]
        command += [options.variant or "", options.only]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started = self._answer()
        self.rows: list[str] = started["rows"]
        assert Path(started["package"]).is_relative_to(path), "the wrong tersegrad was imported"

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a worker died; its message is above")
        return json.loads(line)

    def time(self, row: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(row + "\n")
        self.process.stdin.flush()
        return float(self._answer())

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def median_interval(values: list[float], confidence: float = 0.999) -> tuple[float, float, float]:
    """The median and an interval for it from order statistics: no assumption about the noise."""
    ordered, n = sorted(values), len(values)
    below, rank = 0.0, 0
    for i in range(n // 2):  # the largest rank whose tail stays below (1 - confidence) / 2
        below += math.comb(n, i) / 2.0**n
        if below > (1 - confidence) / 2:
            break
        rank = i + 1
    if rank == 0:
        return float(np.median(ordered)), 0.0, math.inf  # too few rounds to say
    return float(np.median(ordered)), ordered[rank - 1], ordered[n - rank]


def interleave(workers: list[Worker], names: list[str], rounds: int) -> dict[str, np.ndarray]:
    """Seconds by row: an array of (round, worker). The order of the workers turns with the
    rounds.
    """
    seconds = {name: np.zeros((rounds, len(workers))) for name in names}
    for name in names:
        for worker in workers:
            worker.time(name)  # warm
    for i in track(range(rounds), "measuring", console=Console(stderr=True), transient=True):
        for name in names:
            for j in range(len(workers)):
                turn = (i + j) % len(workers)
                seconds[name][i, turn] = workers[turn].time(name)
    return seconds


def report(seconds: dict[str, np.ndarray], base: str, head: str) -> int:
    """Print the table; gives the number of slower rows."""
    table = Table(title=f"{base} -> {head}")
    for heading in (
        "row",
        f"{base} ms",
        f"{head} ms",
        "time ratio",
        "99.9 %",
        "control",
        "verdict",
    ):
        table.add_column(heading, justify="left" if heading in ("row", "verdict") else "right")
    slower = faster = 0
    for name, s in seconds.items():
        ratio, low, high = median_interval(list(s[:, 1] / s[:, 0]))
        _, control_low, control_high = median_interval(list(s[:, 2] / s[:, 0]))
        verdict = ""
        if low > max(1, control_high) and ratio > 1.02:
            verdict, slower = "[red]slower", slower + 1
        elif high < min(1, control_low) and ratio < 0.98:
            verdict, faster = "[green]faster", faster + 1
        before, after = (f"{1e3 * float(np.median(s[:, j])):.3g}" for j in (0, 1))
        interval, control = f"{low:.3f}-{high:.3f}", f"{control_low:.3f}-{control_high:.3f}"
        table.add_row(name, before, after, f"{ratio:.3f}", interval, control, verdict)
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    same = len(seconds) - slower - faster
    print(f"{faster} faster, {slower} slower, {same} the same within the noise")
    return slower


def main() -> int:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("base", help="commit to compare with")
    parse.add_argument("head", help="commit to judge")
    parse.add_argument("-n", "--entries", type=int, default=25_557_032, help="entries per tensor")
    parse.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    parse.add_argument("--variant", help="kernels to run (default: the best)")
    parse.add_argument("--only", default="", help="only operations whose name contains this")
    parse.add_argument(
        "--rounds", type=int, default=25, help="rounds; below 11 nothing can be told"
    )
    parse.add_argument(
        "--fail", action="store_true", help="exit with status 1 when a row became slower"
    )
    options = parse.parse_args()
    folders: list[Path] = []
    with tempfile.TemporaryDirectory(prefix="tersegrad-compare-") as top:
        try:
            paths = []
            for name, commit in (("base", options.base), ("head", options.head)):
                print(f"building {commit}", file=sys.stderr)
                folders.append(Path(top, name))
                paths.append(build(commit, folders[-1]))
            workers = [Worker(path, options) for path in (paths[0], paths[1], paths[0])]
            names = [name for name in workers[0].rows if name in workers[1].rows]
            only = set(workers[0].rows) ^ set(workers[1].rows)
            if only:
                print(f"in one of them only: {', '.join(sorted(only))}")
            seconds = interleave(workers, names, options.rounds)
            for worker in workers:
                worker.stop()
        finally:
            for folder in folders:
                git = ["git", "-C", str(REPOSITORY), "worktree", "remove", "--force", str(folder)]
                subprocess.run(git, capture_output=True, check=False)
    slower = report(seconds, options.base, options.head)
    return int(options.fail and slower > 0)


if __name__ == "__main__":
    sys.exit(main())
