"""AdaptiveCodec: the control law, and that residuals do not notice it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from arrays import assert_same_bits, gradient
from hypothesis import given
from hypothesis import strategies as st

import tersegrad as tg
from tersegrad import AdaptiveCodec

TOPK = tg.TopK(density=0.01, values=tg.Quantize(bits=4))
LAYOUT = {"w": np.zeros((500, 200), np.float32), "b": np.zeros(10, np.float32)}
LOW, HIGH = 0.0005, 0.1

SPEEDS = st.lists(st.floats(1e2, 1e9), min_size=1, max_size=30)


def adaptive(codec: tg.Codec = TOPK, **changes: Any) -> AdaptiveCodec:
    return AdaptiveCodec(codec, LAYOUT, **{"deadline": 1, **changes})


def density_of(codec: tg.Codec) -> float:
    density: float = codec.density  # type: ignore[attr-defined]
    return density


def see(link: AdaptiveCodec, bits_per_second: float) -> tg.Codec:
    return link.observe(link.nbytes, 8 * link.nbytes / bits_per_second)


@pytest.mark.parametrize("codec", [TOPK, tg.TopK(density=0.01), tg.RandomK(density=0.01)], ids=repr)
def test_nbytes_is_the_size_of_the_message(codec: tg.Codec) -> None:
    link = adaptive(codec)
    for speed in (1e4, 3e4, 1e5, 1e6):
        see(link, speed)
        message = tg.compress_many(list(LAYOUT.values()), [link.codec, tg.Identity()])
        assert link.nbytes == len(bytes(message))


@given(SPEEDS)
def test_the_message_fits_the_deadline_unless_the_density_is_the_lowest(
    speeds: list[float],
) -> None:
    link = adaptive()
    for speed in speeds:
        codec = see(link, speed)
        assert codec == link.codec
        assert LOW <= density_of(codec) <= HIGH
        assert link.expected_seconds is not None
        assert link.expected_seconds <= link.deadline or density_of(codec) == LOW


@given(SPEEDS)
def test_the_density_falls_at_once_and_rises_only_by_the_hysteresis(speeds: list[float]) -> None:
    link = adaptive(hysteresis=0.25)
    for speed in speeds:
        before, unchanged = density_of(link.codec), link.codec
        after = density_of(see(link, speed))
        assert after <= before or after >= 1.25 * before or after == HIGH
        if after == before:
            assert link.codec is unchanged  # and with it, what it has cached


@given(st.floats(2e3, 1e6), st.floats(1.001, 100))
def test_a_faster_link_never_brings_a_lower_density(speed: float, factor: float) -> None:
    slow, fast = adaptive(uplink=speed), adaptive(uplink=speed * factor)
    assert density_of(slow.codec) <= density_of(fast.codec)


def test_a_link_of_constant_speed_leaves_the_codec_alone() -> None:
    link = adaptive(uplink="100kbit")
    first = link.codec
    for _ in range(20):
        assert see(link, 1e5) is first


def test_one_stalled_round_in_eight_changes_nothing_and_a_second_does() -> None:
    link = adaptive()
    for _ in range(8):
        see(link, 1e5)
    settled = link.codec
    assert see(link, 1e3) is settled
    assert density_of(see(link, 1e3)) < density_of(settled)


def test_a_link_that_recovers_is_trusted_after_seven_of_eight_fast_rounds() -> None:
    link = adaptive()
    for _ in range(8):
        see(link, 1e4)
    slow = link.codec
    for _ in range(6):
        assert see(link, 1e5) is slow
    assert density_of(see(link, 1e5)) > density_of(slow)


def test_jitter_below_the_hysteresis_moves_the_codec_once() -> None:
    draw = np.random.default_rng(0)
    link = adaptive(hysteresis=0.3)
    codecs = {see(link, 1e5 * draw.uniform(0.95, 1.05)) for _ in range(200)}
    # The estimate stays within 10 % of itself, so the density can only fall, and never by more than that.
    densities = sorted(density_of(codec) for codec in codecs)
    assert densities[-1] < 1.15 * densities[0]


@pytest.mark.parametrize("latency", [0.0, 0.3, 0.6])
def test_a_constant_delay_leaves_what_the_deadline_allows_beside_it(latency: float) -> None:
    bytes_per_second, deadline = 10_000, 1.0
    link = adaptive(hysteresis=0, window=1)
    for _ in range(60):
        link.observe(link.nbytes, latency + link.nbytes / bytes_per_second)
    allowed = (deadline - latency) * bytes_per_second
    # From above it closes in on what is allowed; a step of the ladder is half a per cent.
    assert 0.9 * allowed < link.nbytes < 1.01 * allowed


def test_a_codec_without_a_fixed_size_is_judged_by_what_it_sent() -> None:
    try:
        codec = tg.TopK(density=0.001, values=tg.Quantize(bits=4), indices="rice")
    except tg.CodecError:
        pytest.skip("this build has no codec without a fixed size")
    link, feedback = adaptive(codec, hysteresis=0, window=1), tg.ErrorFeedback(codec)
    for step in range(6):
        feedback.codec = link.codec
        sent = len(bytes(feedback.compress_many({"w": gradient(100_000, step).reshape(500, 200)})))
        link.observe(sent, sent / 2_000)
    assert 1_800 < sent < 2_100  # 2,000 bytes fit, and such gradients differ by a few per cent


def test_without_a_guess_it_starts_at_the_given_codec() -> None:
    link = adaptive()
    assert link.codec is TOPK
    assert link.uplink is None
    assert link.expected_seconds is None


def test_a_guess_is_forgotten_at_the_first_observation() -> None:
    link = adaptive(uplink="1kbit")
    assert density_of(link.codec) == LOW
    assert density_of(see(link, 1e9)) == HIGH
    assert link.uplink == pytest.approx(1e9, rel=1e-12)  # a division and a multiplication


@given(st.integers(1, 5_000_000), st.data())
def test_the_size_of_a_body_grows_with_the_density(n: int, data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["auto", "elias-fano", "u16"]))
    low = data.draw(st.floats(1e-6, 1))
    high = data.draw(st.floats(low, 1))
    for make in (
        lambda density: tg.TopK(density=density, values=tg.Quantize(bits=4), indices=form),
        lambda density: tg.RandomK(density=density, values=tg.Sign()),
    ):
        assert make(low).body_size(n) <= make(high).body_size(n)


def test_residuals_survive_a_change_of_density() -> None:
    link = adaptive()
    feedback = tg.ErrorFeedback(link.codec)
    residual = np.zeros((500, 200), np.float32)
    densities = set()
    for step, speed in enumerate((6e4, 3e4, 1e4, *[1e6] * 6)):
        x = gradient(100_000, step).reshape(500, 200)
        feedback.codec = see(link, speed)
        densities.add(density_of(feedback.codec))
        payload = feedback.compress(x, key="w")
        residual = (x + residual) - tg.decompress(payload)
        assert_same_bits(feedback.residual("w"), residual)
    assert len(densities) >= 3


def test_a_state_travels_as_json_and_continues_as_if_nothing_had_happened() -> None:
    one, other = adaptive(), adaptive()
    for speed in (1e5, 2e4, 7e5):
        see(one, speed)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for speed in (1e6, 1e3, 5e5):
        assert other.codec == one.codec
        assert see(other, speed) == see(one, speed)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"version": 2, "density": 0.01, "share": 1, "speeds": []},
        {"version": 1, "density": 0.5, "share": 1, "speeds": []},
        {"version": 1, "density": float("nan"), "share": 1, "speeds": []},
        {"version": 1, "density": 0.01, "share": 1, "speeds": [0.0]},
        {"version": 1, "density": 0.01, "share": 0, "speeds": []},
        {"version": 1, "density": 0.01, "share": 1, "speeds": ["fast"]},
        {"version": 1, "density": 0.01, "share": 1, "speeds": 3},
        None,
    ],
    ids=repr,
)
def test_a_foreign_state_is_refused_and_changes_nothing(state: Any) -> None:
    link = adaptive()
    see(link, 1e5)
    before = link.state_dict()
    with pytest.raises(tg.StateError):
        link.load_state_dict(state)
    assert link.state_dict() == before


@pytest.mark.parametrize(
    "observation", [(0, 1), (-5, 1), (10, 0), (10, float("inf")), (float("nan"), 1), ("10", 1)]
)
def test_an_observation_that_is_none_is_refused_and_changes_nothing(observation: Any) -> None:
    link = adaptive()
    with pytest.raises(tg.InputError, match="finite number above 0"):
        link.observe(*observation)
    assert (link.codec, link.uplink) == (TOPK, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"codec": tg.Quantize(bits=4)},
        {"codec": tg.TopK(k=10)},
        {"codec": tg.ChunkTopK()},
        {"codec": tg.TopK},
        {"min_density": 0.02},
        {"max_density": 0.005},
        {"min_density": 0},
        {"max_density": 2},
        {"window": 0},
        {"hysteresis": -0.1},
        {"hysteresis": float("nan")},
    ],
    ids=repr,
)
def test_parameters_out_of_range_are_codec_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(tg.CodecError):
        adaptive(**changes)


@pytest.mark.parametrize("changes", [{"deadline": 0}, {"deadline": "soon"}, {"uplink": "2mb"}])
def test_units_out_of_range_are_input_errors(changes: dict[str, Any]) -> None:
    with pytest.raises(tg.InputError):
        adaptive(**changes)
