"""What only a fresh process shows: environment variables, affinity, forks, imports, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from arrays import VARIANTS

linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="fork and affinity as Linux has them"
)
UNSET = ("TERSEGRAD_KERNELS", "OMP_NUM_THREADS", "LOCAL_WORLD_SIZE")


def run(script: str, *, code: int = 0, timeout: float = 120, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in UNSET}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == code, done.stderr
    return (done.stdout if code == 0 else done.stderr).strip()


THREADS = "import tersegrad as tg; print(tg.kernels.get_num_threads())"


@pytest.mark.parametrize("variant", VARIANTS)
def test_environment_forces_a_variant(variant: str) -> None:
    script = """
        import tersegrad as tg, numpy as np
        tg.compress(np.ones(100, np.float32), tg.Quantize())
        print(tg.kernels.active())
    """
    assert run(script, TERSEGRAD_KERNELS=variant) == variant


def test_without_the_environment_the_best_variant_runs() -> None:
    assert run("import tersegrad as tg; print(tg.kernels.active())") == VARIANTS[0]


def test_environment_with_an_unknown_variant_is_a_backend_error_that_names_it() -> None:
    script = """
        import tersegrad as tg, numpy as np
        tg.compress(np.ones(100, np.float32), tg.Quantize())
    """
    last_line = run(script, code=1, TERSEGRAD_KERNELS="sse9").splitlines()[-1]
    assert "BackendError" in last_line
    assert "sse9" in last_line


def test_omp_num_threads_is_respected() -> None:
    assert run(THREADS, OMP_NUM_THREADS="1") == "1"


@pytest.mark.parametrize("value", ["", "many", "-3", "0", "99999999999999999999", "1,2"])
def test_a_senseless_omp_num_threads_leaves_a_sensible_count(value: str) -> None:
    assert 1 <= int(run(THREADS, OMP_NUM_THREADS=value)) <= (os.cpu_count() or 1)


def test_workers_on_one_machine_share_its_cores() -> None:
    alone = int(run(THREADS))
    assert 1 <= alone <= (os.cpu_count() or 1)
    assert int(run(THREADS, LOCAL_WORLD_SIZE="2")) == max(1, alone // 2)
    assert run(THREADS, LOCAL_WORLD_SIZE="1000") == "1"


@linux_only
def test_affinity_is_respected() -> None:
    script = """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import tersegrad as tg
        print(tg.kernels.get_num_threads())
    """
    assert run(script) == "1"


def test_import_needs_neither_torch_nor_cuda() -> None:
    script = """
        import sys
        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torch", "flwr", "ml_dtypes", "rich", "matplotlib"):
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, NoTorch())
        import numpy as np, tersegrad as tg
        x = np.linspace(-1, 1, 1000, dtype=np.float32)
        r = np.zeros_like(x)
        topk = tg.TopK(density=0.1, values=tg.Quantize(bits=4))
        for codec in (tg.Identity(), topk, tg.RandomK(density=0.1)):
            raw = bytes(tg.compress(x, codec, residual=r))
            assert tg.decompress(raw).shape == x.shape
        tg.ErrorFeedback(tg.Sign()).compress(x, key="w")
        print(sorted(set(sys.modules) & {"torch", "flwr"}))
    """
    assert run(script) == "[]"


def test_import_does_not_import_torch() -> None:
    assert run("import sys, tersegrad; print('torch' in sys.modules)") == "False"


def test_import_starts_no_thread() -> None:
    script = """
        import os, numpy
        before = len(os.listdir("/proc/self/task"))
        import tersegrad
        print(len(os.listdir("/proc/self/task")) - before)
    """
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("no /proc")
    assert run(script) == "0"


FORK = """
    import os, signal, sys, time
    import numpy as np
    import tersegrad as tg

    tg.kernels.set_num_threads(3)
    x = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
    codecs = (tg.TopK(density=0.01), tg.Quantize(bits=4), tg.Sign())
    expected = [bytes(tg.compress(x, codec)) for codec in codecs]
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            try:
                ok = [bytes(tg.compress(x, codec)) for codec in codecs] == expected
                tg.kernels.set_num_threads(2)
                ok = ok and [bytes(tg.compress(x, codec)) for codec in codecs] == expected
                grandchild = os.fork()
                if grandchild == 0:
                    os._exit(0 if bytes(tg.compress(x, codecs[0])) == expected[0] else 1)
                ok = ok and os.waitpid(grandchild, 0)[1] == 0
            finally:
                os._exit(0 if ok else 1)
        children.append(child)
        assert [bytes(tg.compress(x, codec)) for codec in codecs] == expected
    deadline = time.monotonic() + 60
    failed = []
    while children:
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.remove(child)
                if status:
                    failed.append(status)
        if children and time.monotonic() > deadline:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            sys.exit("a forked child hangs")
        time.sleep(0.01)
    assert [bytes(tg.compress(x, codec)) for codec in codecs] == expected
    print("failed", failed)
"""


@linux_only
def test_a_forked_child_compresses_after_its_parent_did() -> None:
    assert (
        run("import warnings; warnings.simplefilter('ignore')\n" + textwrap.dedent(FORK))
        == "failed []"
    )


@linux_only
def test_a_fork_while_other_threads_compress_does_not_hang() -> None:
    script = """
        import os, signal, threading, time, warnings
        warnings.simplefilter("ignore")
        import numpy as np, tersegrad as tg
        tg.kernels.set_num_threads(2)
        x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
        expected = bytes(tg.compress(x, tg.TopK(density=0.01)))
        stop = threading.Event()
        def work():
            while not stop.is_set():
                tg.compress(x, tg.TopK(density=0.01))
        workers = [threading.Thread(target=work) for _ in range(2)]
        [worker.start() for worker in workers]
        states = []
        for _ in range(15):
            child = os.fork()
            if child == 0:
                os._exit(0 if bytes(tg.compress(x, tg.TopK(density=0.01))) == expected else 1)
            deadline = time.monotonic() + 20
            while True:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    break
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    status = "hangs"
                    break
                time.sleep(0.002)
            states.append(status)
            if status == "hangs":
                break
        stop.set()
        [worker.join() for worker in workers]
        print(set(states))
    """
    assert run(script) == "{0}"


@linux_only
def test_interpreter_ends_while_the_pool_sleeps() -> None:
    script = """
        import numpy as np, tersegrad as tg
        tg.kernels.set_num_threads(3)
        tg.compress(np.ones(500_000, np.float32), tg.Quantize())
        print("done")
    """
    assert run(script, timeout=60) == "done"


@linux_only
def test_other_threads_run_while_compress_does() -> None:
    """The GIL is released: a second thread wakes during one long call. It cannot without a release,
    because the interpreter itself is told not to switch.
    """
    script = """
        import sys, threading, time
        import numpy as np, tersegrad as tg
        tg.kernels.set_num_threads(1)
        tg.kernels.use("scalar")
        codec = tg.Quantize(bits=8, rounding="stochastic")
        x = np.ones(4_000_000, np.float32)
        duration = 0.0
        while duration < 0.1:
            x = np.concatenate([x, x])
            start = time.monotonic()
            tg.compress(x, codec)
            duration = time.monotonic() - start
        sys.setswitchinterval(1000)
        woken = []
        def work():
            time.sleep(duration / 4)
            woken.append(time.monotonic())
        worker = threading.Thread(target=work)
        worker.start()
        start = time.monotonic()
        tg.compress(x, codec)
        end = time.monotonic()
        worker.join()
        print(start < woken[0] < end)
    """
    assert run(script) == "True"


@linux_only
def test_a_forged_shape_costs_no_memory() -> None:
    """Every dimension is checked against the body before anything is allocated from it."""
    script = """
        import resource, struct, sys
        sys.path.insert(0, "tests")
        import numpy as np, reference as ref, tersegrad as tg
        x = np.random.default_rng(0).standard_normal((10, 10)).astype(np.float32)
        codecs = (tg.Identity(), tg.Cast(), tg.Quantize(bits=2), tg.Sign(), tg.ChunkTopK(),
                  tg.TopK(k=5, indices="bitmap"), tg.TopK(k=50, values=tg.Sign(block_size=65536)))
        shapes = ((2**31, 1), (65535, 65537), (2**32 - 1, 1), (2**63, 2), (2**64 - 1, 3))
        payloads = [bytes(tg.compress(x, codec)) for codec in codecs]
        tg.decompress(payloads[0])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for payload in payloads:
            for shape in shapes:
                forged = ref.seal(payload[:40] + struct.pack("<2Q", *shape) + payload[56:])
                for body_bytes in (None, 2**33, 2**62, 2**64 - 1):
                    if body_bytes is not None:
                        forged = ref.seal(forged[:28] + struct.pack("<Q", body_bytes) + forged[36:])
                    for read in (tg.decompress, tg.Payload.from_bytes):
                        try:
                            read(forged)
                        except tg.PayloadError:
                            continue
                        raise SystemExit(f"accepted {shape} {payload[5]}")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(grown < 30_000 or grown)
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    assert run(f"import os; os.chdir({root!r})\n" + textwrap.dedent(script)) == "True"


@linux_only
def test_expect_and_out_refuse_a_huge_sparse_payload_before_allocation() -> None:
    """k = 1 of 2^32 - 1 entries is honest arithmetic; only the receiver knows it is unwanted."""
    script = """
        import resource, struct, sys
        sys.path.insert(0, "tests")
        import numpy as np, reference as ref, tersegrad as tg
        n = 2**32 - 1
        head = struct.pack("<4sBBBB", b"TGRD", 1, 7, 1, 1)
        params = struct.pack("<IQI", 1, 0, 0) + bytes([1, 0, 0, 0])
        forged = ref.seal(head + params + struct.pack("<QIQ", 4, 0, n) + struct.pack("<f", 1.0))
        tg.Payload.from_bytes(forged)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        small = np.zeros(10, np.float32)
        refused = 0
        for attempt in (
            lambda: tg.decompress(forged, expect=small),
            lambda: tg.Payload.from_bytes(forged, expect=small),
            lambda: tg.decompress(forged, out=small),
        ):
            try:
                attempt()
            except (tg.PayloadError, tg.InputError):
                refused += 1
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(refused, grown < 30_000 or grown)
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    assert run(f"import os; os.chdir({root!r})\n" + textwrap.dedent(script)) == "3 True"
