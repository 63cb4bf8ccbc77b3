"""What a user meets before any codec: the import, the version, the examples."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import tersegrad as tg

ROOT = Path(__file__).resolve().parent.parent


def run_python(*arguments: str | Path) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run(
        [sys.executable, "-W", "error", *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def test_importing_needs_only_numpy() -> None:
    assert not run_python(
        "-c",
        "import sys; before = set(sys.modules)\n"
        "import tersegrad\n"
        "brought = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(brought - set(sys.stdlib_module_names) - {'numpy', 'tersegrad'}))",
    )


def test_the_native_module_links_neither_torch_nor_cuda() -> None:
    libraries = run_python(
        "-c",
        "import tersegrad\n"
        "mapped = {line.split('/', 1)[1] for line in open('/proc/self/maps') if '.so' in line}\n"
        "print(*sorted(path.strip().rsplit('/', 1)[1] for path in mapped))",
    ).split()
    assert any(name.startswith("_core.") for name in libraries)
    assert not [name for name in libraries if re.match("lib(torch|c10|cuda|cudart|gomp)", name)]


def test_importing_starts_no_thread() -> None:
    count = "; print(len(os.listdir('/proc/self/task')))"
    alone = run_python("-c", "import os, numpy" + count)
    assert run_python("-c", "import os, tersegrad" + count) == alone


def test_the_version_is_the_one_installed() -> None:
    assert tg.__version__ == importlib.metadata.version("tersegrad")


def test_every_public_name_exists_and_is_documented() -> None:
    for name in tg.__all__:
        assert getattr(tg, name).__doc__, name


def test_examples_in_docstrings_run() -> None:
    # In a process of their own: an example that registers a codec leaves it registered.
    modules = [module.name for module in pkgutil.walk_packages(tg.__path__, "tersegrad.")]
    absent = [
        f"tersegrad.{module}"
        for module, package in (("flower", "flwr"), ("demo_flower", "flwr"), ("nvflare", "nvflare"))
        if importlib.util.find_spec(package) is None
    ]
    skipped = ("tersegrad.__main__", *absent)
    names = ["tersegrad", *sorted(name for name in modules if not name.startswith(skipped))]
    run_python(
        "-c",
        "import doctest, importlib, sys\n"
        f"tested = [doctest.testmod(importlib.import_module(name)) for name in {names}]\n"
        "assert sum(result.attempted for result in tested) > 0\n"
        "sys.exit(sum(result.failed for result in tested))",
    )


def test_examples_of_the_readme_run(tmp_path: Path) -> None:
    """All ```python blocks, in order, as one program.

    A comment <!--python ... --> is set-up that readers need not see.
    """
    text = (ROOT / "README.md").read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```|^<!--python\n(.*?)^-->", text, re.M | re.S))
    assert any(block[1] for block in blocks), "README.md shows no Python"
    program = ""
    for block in blocks:
        line = text.count("\n", 0, block.start()) + 1
        program += "\n" * (line - program.count("\n"))  # tracebacks give the line in README.md
        program += block[1] or block[2]
    script = tmp_path / "README.py"
    script.write_text(program)
    run_python(script)
