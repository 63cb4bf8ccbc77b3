"""What ddp.py has measured: kept as JSON, shown as tables, bars and a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ddp_bars
import torch
from ddp_bars import bars
from ddp_methods import METHODS
from ddp_models import TASKS
from ddp_network import CONGESTION_CONTROL
from report import markdown, processor, show, significant

import tersegrad as tg

Record = dict[str, Any]
#: What makes two records of a kind the same; the later one stays.
KEYS = {
    "links": ("hosts", "link", "mtu"),
    "timings": ("hosts", "link", "mtu", "model", "method"),
    "curves": ("hosts", "model", "method", "learning_rate"),
}
#: What an all-reduce sends of each byte of the gradients, at the least 2 (W - 1) / W times.
DENSE = {"fp32": 1.0, "fp16": 0.5, "bf16": 0.5}
#: Ethernet and, of each packet, IP and TCP with time stamps.
ETHERNET, HEADERS = 14, 52
SMOOTHED = 3  # losses, of a model that still moves at its full learning rate, are averaged
COLUMNS = {
    "label": "gradients travel as",
    "step": "step, ms",
    "quartiles": "quartiles",
    "coding": "of it coding, ms",
    "over_fp32": "steps/s over float32",
    "over_bf16": "over bf16",
    "wire": "on the wire, KB a step",
    "payload": "payload, KB",
    "overhead": "wire / payload",
    "loss": "test loss at equal steps",
    "loss_change": "over float32, %",
    "steps_to": "steps to float32's last loss",
    "seconds_to": "seconds to it",
}


class Results:
    """Everything measured so far, by this run and earlier ones, in `path`.json."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, list[Record]] = {kind: [] for kind in KEYS}
        self.machine: Record = {}
        if path.with_suffix(".json").exists():
            kept = json.loads(path.with_suffix(".json").read_text())
            self.machine = kept.pop("machine")
            self.records.update(kept)

    def add(self, kind: str, record: Record) -> None:
        """Take a record in, for the one of the same keys if there is one."""
        names = KEYS[kind]
        others = [r for r in self.records[kind] if any(r[n] != record[n] for n in names)]
        self.records[kind] = [*others, record]
        self.machine = machine()

    def save(self) -> None:
        if not self.machine:
            return  # nothing measured, ever
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".json.part")
        unfinished.write_text(
            json.dumps({"machine": self.machine, **self.records}, indent=1) + "\n"
        )
        unfinished.replace(self.path.with_suffix(".json"))

    # --- Losses. ---

    def losses(self, hosts: int, model: str, method: str) -> list[tuple[int, float]]:
        """Smoothed test losses by step, of the learning rate that is best on the validation set."""
        wanted = (hosts, model, method)
        curves = [
            curve for curve in self.records["curves"]
            if (curve["hosts"], curve["model"], curve["method"]) == wanted
        ]  # fmt: skip
        if not curves:
            return []
        steps = TASKS[model].steps
        best = min(curves, key=lambda c: at(smoothed(c["losses"], part=1), steps))
        return smoothed(best["losses"], part=2)

    def target(self, hosts: int, model: str) -> float | None:
        """The loss that float32 ends with."""
        losses = self.losses(hosts, model, "fp32")
        return at(losses, TASKS[model].steps) if losses else None

    # --- Rows. ---

    def settings(self) -> list[tuple[int, str, float, int]]:
        """Hosts, model, link and MTU of every table, in order."""
        found = {(t["hosts"], t["model"], t["link"], t["mtu"]) for t in self.records["timings"]}
        order = list(TASKS)
        return sorted(found, key=lambda s: (s[0], order.index(s[1]), s[2], s[3]))

    def rows(self, hosts: int, model: str, link: float, mtu: int) -> list[Record]:
        """The rows of one table, in the order of METHODS."""
        timings = {
            t["method"]: t for t in self.records["timings"]
            if (t["hosts"], t["model"], t["link"], t["mtu"]) == (hosts, model, link, mtu)
        }  # fmt: skip
        target, steps = self.target(hosts, model), TASKS[model].steps
        rows = []
        for method in METHODS:
            if method not in timings:
                continue
            timing = timings[method]
            row = {
                "method": method,
                "label": METHODS[method].label,
                "step": timing["seconds"] * 1e3,
                "quartiles": "{} .. {}".format(
                    *(significant(timing[q] * 1e3) for q in ("seconds_q1", "seconds_q3"))
                ),
                "wire": timing["wire_bytes"] / 1e3,
                "payload": None,
                "overhead": None,
            }
            for name in ("fp32", "bf16"):
                if name in timings:
                    row[f"over_{name}"] = timings[name]["seconds"] / timing["seconds"]
            if hook := timing["hook"]:
                row["payload"] = hook["received_bytes"] / 1e3
                row["overhead"] = timing["wire_bytes"] / hook["received_bytes"]
                row["coding"] = 1e3 * (hook["compress_seconds"] + hook["decode_seconds"])
            elif share := DENSE.get(method):
                payload = share * timing["gradient_bytes"] * 2 * (hosts - 1) / hosts
                row["payload"] = payload / 1e3
                row["overhead"] = timing["wire_bytes"] / payload
            losses = self.losses(hosts, model, method)
            if losses and target is not None:
                row["loss"] = at(losses, steps)
                row["loss_change"] = 100 * (at(losses, steps) / target - 1)
                reached = next((step for step, loss in losses if loss <= target), None)
                row["steps_to"] = reached or f"not in {losses[-1][0]}"
                if reached:
                    row["seconds_to"] = reached * timing["seconds"]
            rows.append(row)
        return rows

    # --- Tables and plot. ---

    def report(self) -> None:
        """Write OUT.md and OUT.png, and print the tables."""
        if not self.machine:
            return
        lines = ["# DDP over a slow network", "", machine_line(self.machine), "", *self._method()]
        for setting in self.settings():
            rows, title = [shown(row) for row in self.rows(*setting)], heading(*setting)
            show(title, COLUMNS, rows)
            used = {k: v for k, v in COLUMNS.items() if any(row.get(k) is not None for row in rows)}
            lines += ["", f"## {title}", "", *markdown(used, rows)]
        if met := bars(self):
            show("Bars", ddp_bars.COLUMNS, met)
            lines += ["", "## Bars", "", *markdown(ddp_bars.COLUMNS, met)]
        self.path.with_suffix(".md").write_text("\n".join(lines) + "\n")
        if self.settings():
            from ddp_plot import plot

            plot(self, self.path.with_suffix(".png"))

    def _method(self) -> list[str]:
        rates = ", ".join(
            f"{link['achieved']:.4g} of {link['link']:g} Mbit/s ({link['hosts']} hosts, MTU {link['mtu']})"
            for link in sorted(self.records["links"], key=lambda k: (k["hosts"], k["link"]))
        )
        commits = sorted({t["commit"] for t in self.records["timings"] + self.records["curves"]})
        return [
            f"Every host is one process with one thread; all share this machine's processors. A plain TCP "
            f"transfer gets {rates}. Step times are medians. What is on the wire is what the first "
            "host's shaper let out: data, TCP's acknowledgements of what it received, and the headers "
            "of every packet. `payload` is what the hook says each host receives; it sends as much, passing on what others sent; of "
            "float32 and half precision it is what an all-reduce must send.",
            "",
            "What wire / payload can be at best: a packet carries MTU - 52 bytes of payload and takes MTU + 14, and every second one "
            "that comes back is acknowledged with 66. So whoever sends and receives alike pays "
            f"{least_overhead(1500):.3f} at an MTU of 1500, float32 too, and {least_overhead(9000):.3f} at 9000; what a row has above "
            "that is of the last packet of each message, which is not full.",
            "",
            "The loss of a step does not depend on the cable: each row is trained once on a free one, "
            f"at a constant learning rate, and losses are means of {SMOOTHED} evaluations. Time to a "
            "loss is the steps it takes, times the step measured on the cable. Every row had the same "
            "learning rates to choose from, on the validation set; the losses are those of the test "
            "set. The bf16 hook is PyTorch's under another name, since DDP refuses its name on a CPU. "
            f"Measured at {', '.join(commits)}.",
        ]


def least_overhead(mtu: int) -> float:
    """Bytes on the wire by bytes of payload, of full packets and delayed acknowledgements."""
    acknowledgement = ETHERNET + HEADERS
    return (mtu + ETHERNET + acknowledgement / 2) / (mtu - HEADERS)


def heading(hosts: int, model: str, link: float, mtu: int) -> str:
    packets = "" if mtu == 1500 else f", MTU {mtu}"
    return f"{TASKS[model].about}; {hosts} hosts, {link:g} Mbit/s{packets}"


def shown(row: Record) -> Record:
    """With as many digits as are worth showing, where three are too few."""
    digits = {"overhead": "{:.3f}", "loss": "{:.4f}", "loss_change": "{:+.1f}"}
    given = {key: form.format(row[key]) for key, form in digits.items() if row.get(key) is not None}
    return {**row, **given}


def smoothed(losses: Sequence[Sequence[float]], part: int) -> list[tuple[int, float]]:
    """Step and mean of the last SMOOTHED losses; `part` is 1 for validation and 2 for test."""
    values = [loss[part] for loss in losses]
    windows = range(SMOOTHED, len(values) + 1)
    return [(int(losses[i - 1][0]), sum(values[i - SMOOTHED : i]) / SMOOTHED) for i in windows]


def at(losses: Sequence[tuple[int, float]], step: int) -> float:
    return next(loss for s, loss in reversed(losses) if s <= step)


def machine() -> Record:
    return {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "tcp": CONGESTION_CONTROL,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tersegrad": tg.__version__,
        "kernels": tg.kernels.active(),
    }


def machine_line(m: Record) -> str:
    return (
        f"{m['processor']}, {m['cpus']} CPUs, {m['system']}, TCP with {m['tcp']}; kernels "
        f"**{m['kernels']}**; Python {m['python']}, torch {m['torch']}, tersegrad {m['tersegrad']}."
    )
