"""The command `tersegrad tune`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import BudgetError, InputError
from ..terminal import progress_bar
from .measure import MIN_SIZE, codec_line, measure
from .recommend import Budget, Recommendation, choose
from .report import as_dict, can_plot, plot, show_table
from .units import format_bytes
from .updates import read_updates

HELP = """\
Measure codecs on your own model update, on this machine, and choose the one of least error that
your network allows. An update is what one sender sends in one round: a gradient, or the difference
of a model's weights before and after training. Several files are the rounds of one sender, in order.

Reads .npy, .npz, .safetensors and .pt (a dict of tensors); none of them can run code."""

EXAMPLES = """\
examples:
  tersegrad tune update.npz --uplink 2mbit --deadline 5s
  tersegrad tune update.safetensors --max-bytes 200KB
  tersegrad tune round1.npz round2.npz round3.npz --uplink 250KB/s --deadline 300ms
  tersegrad tune update.npy                            every codec, none chosen
  tersegrad tune update.npz --max-bytes 1MB --json | jq .best.python

units:
  speed   bit, kbit, mbit, gbit (per second); KB/s, MB/s are bytes. A bare number is bits per second.
  time    ms, s, min, h. A bare number is seconds.
  size    B, KB, MB, GB (1,000); KiB, MiB, GiB (1,024). A bare number is bytes.

how to read the error:
  NMSE is |x - d|^2 / |x|^2 for an update x that arrives as d: 0 is exact, 1 is nothing sent.
  With error feedback (tersegrad.ErrorFeedback) what a round leaves out is not lost but sent later, so
  that a codec with an NMSE of 0.5 in one round may still train well: it sends half of the energy now.
  Give several rounds, and the choice goes by the error with feedback: how far from the sum of all
  updates the receiver ends, as a share of that sum.

exit status: 0 done, 1 no codec fits, 2 wrong input; standard error says what is wrong."""


def add_parser(commands: Any) -> None:
    """The command `tune`."""
    parser = commands.add_parser(
        "tune",
        help="choose a codec for your own update and network",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="an update; several are rounds")
    add("--uplink", metavar="SPEED", help="of the link, such as 2mbit or 250KB/s")
    add("--deadline", metavar="TIME", help="for compressing and sending a round, such as 5s")
    add("--max-bytes", metavar="SIZE", help="of a round's message, such as 200KB")
    add(
        "--min-size",
        type=int,
        default=MIN_SIZE,
        metavar="N",
        help="tensors of fewer entries travel as they are (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=Path("tersegrad-tune"),
        metavar="DIR",
        help="where the plot and results.json go (default: %(default)s)",
    )
    add("--json", action="store_true", help="print the results as JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    budget = Budget.parse(options.uplink, options.deadline, options.max_bytes)
    updates = read_updates(options.files)
    if not options.json:
        tensors, rounds = len(updates.names), len(updates.rounds)
        print(
            f"{updates.entries:,} entries in {tensors} tensor{'s' * (tensors > 1)}, "
            f"{format_bytes(updates.dense_bytes)} a round{f', {rounds} rounds' * (rounds > 1)}"
        )
    with progress_bar() as show:
        rows = measure(
            updates,
            min_size=options.min_size,
            progress=lambda done, total, codec: show(done, total, codec_line(codec)),
        )
    best: Recommendation | None = None
    reason = ""
    if budget.limits:
        try:
            best = choose(rows, budget)
        except BudgetError as error:
            reason = str(error)
    row = None if best is None else best.best
    results = json.dumps(as_dict(rows, budget, row, updates), indent=1)
    if options.json:
        print(results)
    else:
        show_table(rows, budget, row)
    screen = sys.stderr if options.json else sys.stdout
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        data, picture = options.out / "results.json", options.out / "rate-distortion.png"
        data.write_text(results + "\n")
        print(f"Results: {data}", file=screen)
        if can_plot():
            more = len(options.files) - 1
            about = f", {options.files[0].name}{f' and {more} more' * (more > 0)}"
            plot(rows, budget, row, picture, about)
            print(f"Plot: {picture}", file=screen)
        else:
            print("No plot: pip install 'tersegrad[cli]' brings matplotlib", file=sys.stderr)
    except OSError as error:
        raise InputError(f"cannot write to {options.out}: {error.strerror}") from error
    if reason:
        print(f"tersegrad: {reason}", file=sys.stderr)
        return 1
    if best is None:
        print("To have one chosen, give --uplink and --deadline, or --max-bytes.", file=screen)
    else:
        line = codec_line(best.codec, "tg.")
        print(f"Best for {budget}: {best}", file=screen)
        print(f"  import tersegrad as tg\n  codec = {line}", file=screen)
    return 0
