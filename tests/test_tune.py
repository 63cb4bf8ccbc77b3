"""tersegrad.tune: what is measured, what is chosen, and what is refused."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from arrays import gradient
from hypothesis import given
from hypothesis import strategies as st

import tersegrad as tg
from tersegrad.tune import Budget, Row, choose, measure, read_updates, tune
from tersegrad.tune.measure import codec_line
from tersegrad.tune.units import parse_bytes, parse_rate, parse_seconds

SMALL = {"weight": gradient(6000).reshape(60, 100), "bias": gradient(10, 1)}
ROUNDS = [{"weight": gradient(6000, seed).reshape(60, 100)} for seed in range(3)]
CODECS = (
    tg.Quantize(bits=4),
    tg.TopK(density=0.05, values=tg.Quantize(bits=8)),
    tg.RandomK(density=0.1),
    tg.Sign(),
)


# Measuring.


def test_bytes_are_those_of_the_whole_message() -> None:
    for row in measure(SMALL, CODECS):
        codecs = [row.codec, tg.Identity()]
        assert row.nbytes == len(bytes(tg.compress_many(list(SMALL.values()), codecs)))
        assert row.ratio == 4 * 6010 / row.nbytes


def test_nmse_and_cosine_are_those_of_the_decoded_entries() -> None:
    x = ROUNDS[0]["weight"].astype(np.float64)
    for row in measure(ROUNDS[0], CODECS):
        (decoded,) = tg.decompress_many(tg.compress_many([ROUNDS[0]["weight"]], row.codec))
        d = decoded.astype(np.float64)
        # The residual, from which they are measured, is x - d rounded to float32: 2**-24 of each entry at most.
        assert row.nmse == pytest.approx(((x - d) ** 2).sum() / (x**2).sum(), rel=2**-22)
        cosine = (x * d).sum() / np.sqrt((x**2).sum() * (d**2).sum())
        assert row.cosine == pytest.approx(cosine, rel=2**-22)


def test_the_error_with_feedback_is_what_error_feedback_keeps_after_all_rounds() -> None:
    total = sum(update["weight"].astype(np.float64) for update in ROUNDS)
    for row in measure(ROUNDS, CODECS):
        feedback = tg.ErrorFeedback(row.codec)
        for update in ROUNDS:
            feedback.compress_many(update)
        residual = feedback.residual("weight").astype(np.float64)
        assert row.error == row.feedback_nmse
        # Sums of 6,000 numbers in another order: 6,000 * 2**-53 at most.
        expected = (residual**2).sum() / (total**2).sum()
        assert row.feedback_nmse == pytest.approx(expected, rel=1e-12)


def test_one_round_has_no_error_with_feedback() -> None:
    for row in measure(ROUNDS[:1], CODECS):
        assert row.feedback_nmse is None
        assert row.error == row.nmse


def test_an_exact_codec_has_no_error_and_cosine_one() -> None:
    (row,) = measure(ROUNDS, [tg.Identity()])
    assert (row.nmse, row.feedback_nmse, row.cosine) == (0, 0, 1)


def test_an_update_of_zeros_has_no_error() -> None:
    for row in measure([np.zeros(5000, np.float32)] * 2, CODECS):
        assert (row.nmse, row.cosine) == (0, 0)


def test_small_tensors_travel_as_they_are() -> None:
    (row,) = measure({"bias": gradient(63)}, [tg.Sign()])
    assert row.nmse == 0
    (row,) = measure({"bias": gradient(63)}, [tg.Sign()], min_size=63)
    assert row.nmse > 0


def test_integers_travel_exactly_and_are_counted() -> None:
    counted = {**SMALL, "steps": np.arange(7), "mask": np.ones(3, bool)}
    with_integers, without = measure(counted, CODECS[:1]), measure(SMALL, CODECS[:1])
    assert with_integers[0].nbytes == without[0].nbytes + 7 * 8 + 3
    assert with_integers[0].dense_bytes == without[0].dense_bytes + 7 * 8 + 3


def test_updates_are_not_changed() -> None:
    before = {name: array.copy() for name, array in SMALL.items()}
    measure(SMALL, CODECS)
    for name, array in SMALL.items():
        assert array.tobytes() == before[name].tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors_of_every_dtype_are_measured(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(gradient(5000)).to(dtype)
    for row in measure({"w": tensor}, CODECS):
        assert row.nbytes == len(bytes(tg.compress_many([tensor], row.codec)))
        assert 0 < row.nmse < 1
        assert row.dense_bytes == tensor.nbytes


def test_float64_is_rounded_to_float32() -> None:
    updates = read_updates(np.linspace(0, 1, 5000))
    assert updates.rounds[0][0].tobytes() == np.linspace(0, 1, 5000).astype(np.float32).tobytes()


def test_progress_is_told_before_each_codec() -> None:
    told: list[Any] = []
    measure(SMALL, CODECS, progress=lambda *what: told.append(what))
    assert told == [(number, len(CODECS), codec) for number, codec in enumerate(CODECS)]


@pytest.mark.parametrize(
    "updates",
    [
        {},
        [],
        None,
        3.5,
        {"w": "text"},
        {"w": np.arange(5)},
        np.zeros(0, np.float32),
        np.array([1, np.nan], np.float32),
        np.array([1e300, 1]),
        np.zeros(3, np.complex64),
        [{"a": gradient(5)}, {"b": gradient(5)}],
        [{"a": gradient(5)}, {"a": gradient(6)}],
        [{"a": gradient(5)}, {"a": gradient(5).astype(np.float16)}],
    ],
    ids=repr,
)
def test_what_is_no_update_is_refused(updates: Any) -> None:
    with pytest.raises(tg.InputError):
        measure(updates)


def test_candidates_are_checked() -> None:
    with pytest.raises(tg.InputError, match="empty"):
        measure(SMALL, [])
    with pytest.raises(tg.CodecError, match="TopK"):
        measure(SMALL, [tg.TopK])  # type: ignore[list-item]
    with pytest.raises(tg.InputError, match="min_size"):
        measure(SMALL, min_size=-1)


# Choosing.


def row(nbytes: int, nmse: float, seconds: float = 0.0, codec: tg.Codec = CODECS[0]) -> Row:
    return Row(codec, nbytes, 10**6, nmse, 0.5, None, seconds, 0.0)


ROWS = st.lists(
    st.builds(row, st.integers(1, 10**6), st.floats(0, 2), st.floats(0, 1)), min_size=1, max_size=30
)
BUDGETS = st.builds(
    Budget,
    uplink=st.floats(1, 1e9),
    deadline=st.none() | st.floats(1e-3, 1e3),
    max_bytes=st.integers(1, 10**6),
)


def chosen(rows: list[Row], budget: Budget) -> Row | None:
    try:
        return choose(rows, budget).best
    except tg.BudgetError:
        return None


@given(ROWS, BUDGETS)
def test_the_choice_never_exceeds_the_budget(rows: list[Row], budget: Budget) -> None:
    best = chosen(rows, budget)
    if best is None:
        assert not any(budget.fits(row) for row in rows)
        return
    assert budget.max_bytes is not None
    assert best.nbytes <= budget.max_bytes
    seconds = budget.seconds(best)
    assert seconds == best.compress_seconds + 8 * best.nbytes / budget.uplink  # type: ignore[operator]
    assert budget.deadline is None or seconds <= budget.deadline
    assert best.error == min(row.error for row in rows if budget.fits(row))


@given(ROWS, st.integers(1, 10**6), st.integers(1, 10**6))
def test_more_bytes_never_bring_a_larger_error(rows: list[Row], one: int, other: int) -> None:
    less = chosen(rows, Budget(max_bytes=min(one, other)))
    more = chosen(rows, Budget(max_bytes=max(one, other)))
    assert less is None or (more is not None and more.error <= less.error)


@given(ROWS, st.floats(1, 1e9), st.floats(1e-3, 1e3), st.floats(1, 100))
def test_a_faster_link_never_brings_a_larger_error(
    rows: list[Row], uplink: float, deadline: float, factor: float
) -> None:
    slow = chosen(rows, Budget(uplink, deadline))
    fast = chosen(rows, Budget(uplink * factor, deadline))
    assert slow is None or (fast is not None and fast.error <= slow.error)


def test_of_equal_errors_the_smaller_wins_and_of_equal_sizes_the_earlier() -> None:
    rows = [row(9, 0.5), row(7, 0.5, codec=CODECS[1]), row(7, 0.5, codec=CODECS[2])]
    assert choose(rows, Budget(max_bytes=9)).codec == CODECS[1]


def test_when_nothing_fits_the_smallest_is_named_with_what_it_needs() -> None:
    rows = [row(9000, 0.5, 0.5), row(5000, 0.9, 0.5, tg.Sign())]
    with pytest.raises(tg.BudgetError, match=r"Sign\(1024\), takes 5,000 bytes; allow 5,000 bytes"):
        choose(rows, Budget(max_bytes=4999))
    with pytest.raises(
        tg.BudgetError, match=r"4.5 s; wait 4.54 s or find an uplink of 80.8 kbit/s"
    ):
        choose(rows, Budget(uplink=10_000, deadline=1))
    assert choose(rows, Budget(uplink=10_000, deadline=4.54)).nbytes == 5000
    assert choose(rows, Budget(uplink=80_800, deadline=1)).nbytes == 5000
    with pytest.raises(tg.BudgetError) as caught:
        choose(rows, Budget(uplink=1e9, deadline=0.25))
    assert "uplink of" not in str(caught.value)  # no link makes compressing faster


def test_tune_returns_a_codec_that_works_at_once() -> None:
    best = tune(SMALL, max_bytes="2KB", candidates=CODECS)
    assert best.codec == CODECS[1]
    assert best.nbytes <= 2000
    assert best.best in best.table
    assert [r.codec for r in best.table] == list(CODECS)
    assert best.seconds is None
    assert tg.decompress(tg.compress(SMALL["weight"], best.codec)).shape == (60, 100)
    assert tune(SMALL, uplink="1mbit", deadline="1h", candidates=CODECS).seconds is not None


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"uplink": "2mbit"},
        {"deadline": 5},
        {"deadline": 5, "max_bytes": 10},
        {"uplink": "2mb", "deadline": 5},
        {"uplink": -1, "deadline": 5},
        {"uplink": 1e6, "deadline": 0},
        {"max_bytes": "200kb"},
        {"max_bytes": float("nan")},
        {"max_bytes": True},
        {"max_bytes": 0.5},
        {"max_bytes": [1]},
    ],
    ids=repr,
)
def test_a_budget_that_is_none_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(tg.InputError):
        tune(SMALL, candidates=CODECS, **limits)


def test_units_are_read_as_people_write_them() -> None:
    for text in ("2mbit", "2Mbit/s", "2 Mbps", "2 Mb/s", "250KB/s", "0.25 MB/s", "2e6", 2_000_000):
        assert parse_rate(text) == 2e6, text
    for text in ("200KB", "200kB", "0.2MB", " 200000 ", 200_000):
        assert parse_bytes(text) == 200_000, text
    assert parse_bytes("1.5KiB") == 1536
    for text in ("300ms", "0.3s", ".3", 0.3):
        assert parse_seconds(text) == 0.3, text
    assert parse_seconds("2min") == 120
    assert parse_seconds("1h") == 3600


@given(st.text(max_size=12) | st.floats() | st.integers() | st.none())
def test_any_other_text_is_a_typed_error(value: Any) -> None:
    for parse in (parse_rate, parse_bytes, parse_seconds):
        with suppress(tg.InputError):
            assert 0 < parse(value) < 1e25


def test_a_codec_is_written_as_python_reads_it() -> None:
    for codec in (*tg.tune.CANDIDATES, tg.TopK(k=5), tg.RandomK(k=3, seed=9, values=tg.Sign(64))):
        assert eval(codec_line(codec, "tg."), {"tg": tg}) == codec
