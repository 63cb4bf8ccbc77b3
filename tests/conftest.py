"""Profiles: `quick` for every run; HYPOTHESIS_PROFILE=thorough searches ten times longer."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import tersegrad as tg

SHARED = ("module", "session")

settings.register_profile(
    "quick",
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", parent=settings.get_profile("quick"), max_examples=400, derandomize=False
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what is expensive to make stay in one of pytest-xdist's processes."""
    for item in items:
        known = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
        shared = [
            f.baseid for fixtures in known for f in fixtures if f.scope in SHARED and f.baseid
        ]
        if shared:
            item.add_marker(pytest.mark.xdist_group(shared[0]))


@pytest.fixture(autouse=True)
def kernels_are_left_as_found() -> Iterator[None]:
    """What a test forces must not decide what the next test measures."""
    variant, threads = tg.kernels.active(), tg.kernels.get_num_threads()
    yield
    left_variant, left_threads = tg.kernels.active(), tg.kernels.get_num_threads()
    tg.kernels.use(variant)
    tg.kernels.set_num_threads(threads)
    assert (left_variant, left_threads) == (variant, threads)
