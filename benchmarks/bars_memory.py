"""Peak memory of one compress beyond input, residual and payload, by the kernel's own count in a
process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys

_CASES = {
    "TopK(0.01)": "tg.TopK(0.01), None",
    "TopK(0.01) + residual": "tg.TopK(0.01), r",
    "TopK(0.01, Quantize(4)) + residual": "tg.TopK(0.01, values=tg.Quantize(bits=4)), r",
}

# VmHWM is the peak of the resident set; writing 5 to clear_refs starts it afresh.
_PROGRAM = """
import json, re, numpy as np, tersegrad as tg
tg.kernels.use({variant!r}); tg.kernels.set_num_threads({threads})
n = {n}
draw = np.random.default_rng(0)
x = draw.standard_normal(n, dtype=np.float32)
r = np.ones(n, np.float32)
r[:] = 0
status = lambda: open("/proc/self/status").read()
field = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", status())[1])
warm = tg.compress(x[:200_000].copy(), {codec}) if {residual!r} == "None" else tg.compress(
    x[:200_000].copy(), {codec}, residual=r[:200_000].copy())
open("/proc/self/clear_refs", "w").write("5")
before = field("VmRSS")
payload = tg.compress(x, {codec}, residual={residual})
print(json.dumps((field("VmHWM") - before - payload.nbytes) / x.nbytes))
"""


def peak_extra_memory(n: int) -> tuple[float, str]:
    """The worst case in percent of the input, and all of them as text."""
    import tersegrad as tg

    shares = {}
    for name, case in _CASES.items():
        codec, residual = case.rsplit(", ", 1)
        program = _PROGRAM.format(
            n=n, codec=codec, residual=residual, variant=tg.kernels.active(),
            threads=tg.kernels.get_num_threads(),
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"the memory probe failed:\n{done.stderr}")
        shares[name] = 100 * float(json.loads(done.stdout))
    return max(shares.values()), "; ".join(f"{name} {share:.2f}" for name, share in shares.items())
