"""Tensors on a device obey the laws of those on the host, and give the same bytes, without waiting."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import contract
import numpy as np
import pytest
import reference as ref
import torch
from arrays import DTYPES, as_torch, assert_same_bits, bits_of, gradient, mixture
from contract import Grid, name_of
from devices import CODECS, CUDA, DEVICES, EMULATION, WAITING, on

import tersegrad as tg
from tersegrad.device import serving
from tersegrad.device.payload import DevicePayload

LAWS: list[Callable[[tg.Codec], None]] = [
    contract.bytes_are_those_of_the_oracle,
    contract.payload_says_what_it_is,
    contract.bytes_decode_to_the_bits_of_the_payload,
    contract.residual_is_exactly_what_was_lost,
    contract.input_is_not_written,
    contract.non_finite_input_is_an_error_that_touches_nothing,
    contract.non_finite_residual_is_an_error_that_says_so,
    contract.skip_gives_zeros_and_leaves_the_residual,
    contract.out_receives_what_decompress_returns,
    contract.accumulate_adds_scale_times_decoded,
    contract.scale_multiplies_what_is_decoded,
    contract.seam_for_adapters_writes_the_same_body,
]
CODEC = tg.TopK(density=0.05, values=tg.Quantize(bits=4))


@pytest.fixture(params=DEVICES)
def place(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    with on(request.param) as device:
        yield device


@pytest.mark.parametrize("codec", CODECS + WAITING[:2], ids=name_of)
def test_the_laws_of_codecs_hold_there(
    codec: tg.Codec, place: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress, seen = tg.compress, []

    def compress_and_look(x: Any, *arguments: Any, **options: Any) -> Any:
        """Looking at the payload is when an error comes."""
        payload = compress(x, *arguments, **options)
        if isinstance(x, torch.Tensor):
            assert isinstance(payload, DevicePayload)
            assert payload.body.device.type == place.type
            payload.check()
            seen.append(payload)
        return payload

    monkeypatch.setattr(tg, "compress", compress_and_look)
    for law in LAWS:
        if codec.is_fixed_size or law is not contract.seam_for_adapters_writes_the_same_body:
            law(codec)
    assert len(seen) > 100


# --- When a number that is not finite is told. ---


def test_nothing_is_raised_before_the_payload_is_looked_at(place: torch.device) -> None:
    x = as_torch(gradient(1000))
    x[500] = float("nan")
    residual = as_torch(gradient(1000, seed=1))
    before = residual.clone()
    payload = tg.compress(x, CODEC, residual=residual)
    assert not tg.decompress(payload).any()
    assert torch.equal(residual, before)
    for look in (bytes, lambda p: p.skipped, lambda p: p.check(), pickle.dumps, copy.deepcopy):
        with pytest.raises(tg.NonFiniteError, match="skip"):
            look(payload)
    with pytest.raises(tg.NonFiniteError):
        tg.decompress(payload, kind="numpy")


def test_reset_loses_the_residual_and_says_so(place: torch.device) -> None:
    x, residual = as_torch(gradient(1000)), as_torch(gradient(1000, seed=1))
    x[3] = float("inf")
    payload = tg.compress(x, CODEC, residual=residual, nonfinite="reset")
    assert not residual.any()
    with pytest.raises(tg.NonFiniteError, match="set to zero"):
        bytes(payload)


# --- What lies where. ---


def test_what_decompress_returns_is_on_the_device_unless_asked_otherwise(
    place: torch.device,
) -> None:
    x = as_torch(mixture(3000))
    payload = tg.compress(x, CODEC)
    raw = bytes(payload)
    expected = tg.decompress(payload)
    assert expected.device.type == place.type
    on_host = tg.decompress(payload, kind="numpy")
    assert isinstance(on_host, np.ndarray)
    assert_same_bits(on_host, expected)
    assert isinstance(tg.decompress(raw), np.ndarray)
    for kind in (place, place.type):
        there = tg.decompress(raw, kind=kind)
        assert there.device.type == place.type
        assert_same_bits(there, expected)
    out = torch.ones_like(x)
    assert tg.decompress(raw, out=out) is out
    assert_same_bits(out, expected)
    array = np.ones(3000, np.float32)
    tg.decompress(payload, out=array)
    assert_same_bits(array, expected)


def test_a_payload_may_be_read_from_bytes_on_the_device(place: torch.device) -> None:
    x = as_torch(mixture(3000))
    raw = bytes(tg.compress(x, CODEC))
    buffer = torch.frombuffer(bytearray(raw), dtype=torch.uint8).to(place)
    payload = tg.Payload.from_bytes(buffer, expect=x)
    assert payload.body.device.type == place.type
    assert bytes(payload) == raw
    damaged = buffer.clone()
    damaged[60] ^= 1
    with pytest.raises(tg.PayloadError, match="damaged"):
        tg.decompress(damaged)
    with pytest.raises(tg.PayloadError, match="expected"):
        tg.decompress(buffer, expect=x[1:])


def test_a_forged_body_is_found_on_the_host_before_it_reaches_the_device(
    place: torch.device,
) -> None:
    payload = tg.compress(np.ones(1000, np.float32), tg.Quantize(bits=4))
    payload._body[:4] = np.frombuffer(np.float32("nan").tobytes(), np.uint8)
    out = as_torch(gradient(1000))
    before = out.clone()
    with pytest.raises(tg.PayloadError):
        tg.decompress(bytes(payload), out=out)
    assert torch.equal(out, before)


def test_a_pickled_payload_comes_back_on_the_host(place: torch.device) -> None:
    payload = tg.compress(as_torch(gradient(300)), CODEC)
    again = pickle.loads(pickle.dumps(payload))
    assert type(again) is tg.Payload
    assert again == payload
    assert hash(again) == hash(payload)


def test_inputs_that_do_not_fit_are_refused(place: torch.device) -> None:
    x = as_torch(gradient(20))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"residual": torch.zeros(19)}, "shape"),
        ({"residual": torch.zeros(20, dtype=torch.float16)}, "float32"),
        ({"residual": torch.zeros(40)[::2]}, "contiguous"),
        ({"residual": np.zeros(20, np.float32)}, "ndarray"),
        ({"step": -1}, "step"),
        ({"step": torch.zeros(2, dtype=torch.int32)}, "step"),
        ({"step": torch.zeros(1)}, "step"),
        ({"nonfinite": "maybe"}, "nonfinite"),
    ]
    for options, message in cases:
        with pytest.raises(tg.InputError, match=message):
            tg.compress(x, CODEC, **options)
    with pytest.raises(tg.InputError, match="int32"):
        tg.compress(x.int(), CODEC)
    payload = tg.compress(x, CODEC)
    with pytest.raises(tg.InputError, match="shape"):
        tg.decompress(payload, out=torch.zeros(19))
    with pytest.raises(tg.InputError, match="kind"):
        tg.decompress(payload, kind="tape")


def test_the_seam_tells_the_device_alone_if_asked_so(place: torch.device) -> None:
    from tersegrad.codec import decode_into, encode_into

    x, bad = as_torch(gradient(100)), torch.full((100,), float("inf"))
    buffer = torch.zeros(CODEC.body_size(100) + 16, dtype=torch.uint8)
    body, status = buffer[: CODEC.body_size(100)], torch.ones(1, dtype=torch.int32)
    assert encode_into(x, CODEC, body, status=status) is True
    assert int(status) == 0
    assert encode_into(bad, CODEC, body, status=status) is True
    assert int(status) == 2
    with pytest.raises(tg.InputError, match="residual"):
        encode_into(x, CODEC, body, residual=bad)
    for wrong in (buffer, buffer[1 : 1 + body.numel()], body.int(), body.cpu().numpy()):
        with pytest.raises(tg.InputError, match="body"):
            encode_into(x, CODEC, wrong)
        with pytest.raises(tg.InputError, match="body"):
            decode_into(wrong, CODEC, torch.zeros(100))
    with pytest.raises(tg.InputError, match="status"):
        encode_into(x, CODEC, body, status=torch.zeros(1))
    with pytest.raises(tg.InputError, match="dtype"):
        decode_into(body, CODEC, torch.zeros(100), dtype="int8")


@pytest.mark.parametrize("codec", WAITING, ids=name_of)
def test_the_seam_takes_no_body_whose_size_has_to_be_counted(
    codec: tg.Codec, place: torch.device
) -> None:
    from tersegrad.codec import decode_into, encode_into

    x = as_torch(gradient(100))
    body = tg.compress(x, codec).body
    with pytest.raises(tg.CodecError, match="different sizes"):
        encode_into(x, codec, body)
    with pytest.raises(tg.CodecError, match="different sizes"):
        decode_into(body, codec, x)


@pytest.mark.parametrize(
    "codec",
    [
        Grid(),
        tg.TopK(density=0.1, values=Grid()),
        tg.TopK(density=0.1, indices="rice"),
        tg.Threshold(density=0.1),
        tg.Threshold(value=0.1, indices="rice"),
    ],
    ids=name_of,
)
def test_a_codec_without_a_form_there_says_what_to_do(codec: tg.Codec, place: torch.device) -> None:
    x = as_torch(gradient(100))
    with pytest.raises(tg.CodecError, match=r"cpu\(\)"):
        tg.compress(x, codec)
    with pytest.raises(tg.CodecError, match=r"cpu\(\)"):
        tg.compress_many([x], codec)


# --- A step that is a counter on the device. ---


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint32], ids=str)
def test_a_step_on_the_device_is_the_step(place: torch.device, dtype: torch.dtype) -> None:
    x = as_torch(gradient(5000))
    for codec in (
        tg.Quantize(bits=4, rounding="stochastic"),
        tg.RandomK(density=0.1),
        tg.Rotated(2),
    ):
        step = torch.tensor([7], dtype=dtype)
        payload = tg.compress(x, codec, step=step)
        if dtype != torch.uint32:
            step += 1  # the payload keeps its own
        assert payload.step == 7
        assert bytes(payload) == bytes(tg.compress(x, codec, step=7))
        assert_same_bits(tg.decompress(payload), tg.decompress(tg.compress(x, codec, step=7)))


# --- Error feedback and messages of many tensors. ---


def layers(step: int, dtype: str = "float32") -> dict[str, torch.Tensor]:
    shapes = {"weight": (16, 33), "bias": (33,), "scale": ()}
    return {
        key: as_torch(ref.store(gradient(int(np.prod(shape)), seed=step).reshape(shape), dtype))
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize("codec", CODECS + WAITING, ids=name_of)
@pytest.mark.parametrize("many", [False, True])
def test_error_feedback_is_that_of_the_host(codec: tg.Codec, many: bool, request: Any) -> None:
    states = []
    for device in ("cpu", "emulated"):
        with on(device):
            feedback, raw = tg.ErrorFeedback(codec), b""
            for step in range(4):
                if many:
                    message = feedback.compress_many(layers(step))
                    raw += bytes(message)
                    restored = tg.decompress_many(message)
                else:
                    payloads = [feedback.compress(x, key=k) for k, x in layers(step).items()]
                    raw += b"".join(map(bytes, payloads))
                    restored = [tg.decompress(payload) for payload in payloads]
                raw += b"".join(bits_of(x).tobytes() for x in restored)
            states.append((raw, feedback.norm(), feedback.state_dict()))
    assert states[0][0] == states[1][0]
    assert states[0][1] == pytest.approx(states[1][1])
    for key, residual in states[0][2]["residuals"].items():
        assert_same_bits(residual, states[1][2]["residuals"][key])


def test_the_last_key_stays_on_the_device_and_is_never_trusted(place: torch.device) -> None:
    """A wrong one costs time alone: `tests/test_cuda_kernels.py` counts."""
    n, k = 20_000, 200
    codec = tg.TopK(k=k)
    feedback, other = tg.ErrorFeedback(codec), tg.ErrorFeedback(codec)
    residual = np.zeros(n, np.float32)
    for step in range(4):
        x = gradient(n, seed=step)
        keys = np.sort((x + residual).view(np.uint32) & 0x7FFFFFFF)
        message = feedback.compress_many({"w": as_torch(x)})
        payload = other.compress(as_torch(x), key="w")
        expected = tg.compress(x, codec, residual=residual, step=step)
        assert bytes(payload) == bytes(expected)
        assert bytes(message)[-expected.body.size :] == bytes(expected)[-expected.body.size :]
        there = [each._calls["w"].last_key_there for each in (feedback, other)]
        assert [last.device.type for last in there] == [place.type] * 2
        assert [int(last) for last in there] == [keys[-k]] * 2
        there[1].fill_(-1 - step)
    again = pickle.loads(pickle.dumps(other))
    x = as_torch(gradient(n, seed=9))
    assert bytes(again.compress(x, key="w")) == bytes(other.compress(x, key="w"))


def test_a_held_stream_is_that_of_its_device_and_thread(place: torch.device) -> None:
    with serving("cpu", EMULATION) as backend:
        device = torch.device("cpu")
        with backend.hold(device):
            backend._held.place = (device, 7)
            with ThreadPoolExecutor(1) as pool, backend.hold(device):
                assert backend.stream(device) == 7
                assert backend.stream(torch.device("cpu", 0)) == 0
                assert pool.submit(backend.stream, device).result() == 0
            assert backend.stream(device) == 7
        assert backend.stream(device) == 0


def test_state_resumes_there_and_moves_to_where_the_tensors_are(place: torch.device) -> None:
    straight, first = tg.ErrorFeedback(CODEC), tg.ErrorFeedback(CODEC)
    for step in range(3):
        for key, x in layers(step).items():
            straight.compress(x, key=key)
            first.compress(x, key=key)
    second = tg.ErrorFeedback(CODEC)
    second.load_state_dict(first.state_dict())
    third = tg.ErrorFeedback(CODEC)
    third.load_state_dict(
        {
            **first.state_dict(),
            "residuals": {k: r.cpu().numpy() for k, r in first.state_dict()["residuals"].items()},
        }
    )
    for key, x in layers(3).items():
        expected = bytes(straight.compress(x, key=key))
        assert bytes(second.compress(x, key=key)) == expected
        assert bytes(third.compress(x, key=key)) == expected
        assert third.residual(key).device.type == place.type
    second.rescale(0.3)
    expected = straight.residual("weight") * 0.3
    assert torch.equal(second.residual("weight"), expected)
    with pytest.raises(tg.StateError, match="shape"):
        second.compress(torch.ones(3), key="weight")
    second.reset()
    assert second.norm() == 0


def test_skipped_inputs_are_counted_there(place: torch.device) -> None:
    feedback = tg.ErrorFeedback(CODEC, nonfinite="skip")
    x = as_torch(gradient(100))
    bad = x.clone()
    bad[0] = float("inf")
    feedback.compress(x, key="a")
    before = feedback.residual("a").clone()
    assert feedback.compress(bad, key="a").skipped is True
    assert torch.equal(feedback.residual("a"), before)
    message = feedback.compress_many({"a": bad, "b": x})
    assert message.skipped == (0,)
    assert feedback.skipped == 2
    assert pickle.loads(pickle.dumps(feedback)).skipped == 2
    assert feedback.state_dict()["skipped"] == 2


def test_messages_are_those_of_the_host(place: torch.device) -> None:
    codecs = [CODEC, tg.Quantize(bits=4), tg.Threshold(value=0.5)]
    for dtype in DTYPES:
        xs = list(layers(1, dtype).values())
        message = tg.compress_many(xs, codecs, step=3)
        raw = bytes(message)
        on_host = tg.compress_many([x.cpu().float().numpy() for x in xs], codecs, step=3)
        if dtype == "float32":
            assert raw == bytes(on_host)
        assert message.nbytes == len(raw)
        assert len(tg.Message.from_bytes(raw)) == 3
        restored = tg.decompress_many(message)
        for again in (
            tg.decompress_many(raw, kind=place),
            tg.decompress_many(torch.frombuffer(bytearray(raw), dtype=torch.uint8).to(place)),
            tg.decompress_many(raw, out=[torch.ones_like(x) for x in xs]),
            tg.decompress_many(raw, kind="torch"),
        ):
            for got, expected in zip(again, restored, strict=True):
                assert_same_bits(got, expected)


@pytest.mark.parametrize("codec", [CODEC, *WAITING], ids=name_of)
def test_one_bad_tensor_of_a_message_keeps_all_residuals(
    codec: tg.Codec, place: torch.device
) -> None:
    xs = list(layers(1).values())
    xs[1][5] = float("nan")
    residuals = [torch.ones(x.shape) for x in xs]
    for nonfinite, kept in (("error", [1, 1, 1]), ("skip", [0, 1, 0]), ("reset", [0, 2, 0])):
        current = [r.clone() for r in residuals]
        message = tg.compress_many(xs, codec, residuals=current, nonfinite=nonfinite)
        if nonfinite == "skip":
            assert message.skipped == (1,)
            assert len(tg.decompress_many(bytes(message))) == 3
        else:
            with pytest.raises(tg.NonFiniteError, match=r"\[1\]"):
                bytes(message)
        for residual, before, law in zip(current, residuals, kept, strict=True):
            assert torch.equal(residual, before) == (law == 1)
            assert law != 2 or not residual.any()


def test_a_message_waits_once_for_all_its_counts(
    place: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, tolist = set(), torch.Tensor.tolist

    def noted(tensor: torch.Tensor) -> Any:
        waits.add((tensor.data_ptr(), tensor.numel()))  # torch may call itself again
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", noted)
    xs = list(layers(1).values())
    tg.compress_many(xs, [CODEC, tg.Threshold(value=0.5), tg.Threshold(value=0.1)])
    assert [count for _, count in waits] == [3]
    waits.clear()
    tg.compress_many(xs, CODEC)
    assert not waits


def test_a_message_lies_on_one_device(place: torch.device) -> None:
    with pytest.raises(tg.InputError, match="one device"):
        tg.compress_many([as_torch(gradient(5)), gradient(5)], CODEC)
    with pytest.raises(tg.InputError, match="shape"):
        tg.decompress_many(tg.compress_many([as_torch(gradient(5))], CODEC), out=[torch.ones(4)])


# --- Arrays of other libraries. ---


class Foreign:
    """An array that speaks DLPack and is no tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.streams: list[Any] = []

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        self.streams.append(stream)
        return self._tensor.__dlpack__(stream=stream, **options)


def test_arrays_of_other_libraries_come_in_by_dlpack(place: torch.device) -> None:
    x, residual = as_torch(gradient(1000)), torch.zeros(1000)
    expected = bytes(tg.compress(x, CODEC, residual=residual.clone()))
    other = Foreign(residual)
    assert bytes(tg.compress(Foreign(x), CODEC, residual=other)) == expected
    assert residual.any()
    out = torch.ones(1000)
    given = Foreign(out)
    assert tg.decompress(expected, out=given) is given
    assert_same_bits(out, tg.decompress(expected, kind=place))
    message = tg.compress_many([Foreign(x)], CODEC)
    assert len(bytes(message)) == message.nbytes


def test_without_a_device_such_an_array_is_refused_as_before() -> None:
    with pytest.raises(tg.InputError, match="Foreign"):
        tg.compress(Foreign(torch.ones(3)), CODEC)


# --- Without the module, or with an old driver. ---


def stand_in(version: int, count: int = 1) -> types.SimpleNamespace:
    return types.SimpleNamespace(driver_version=lambda: version, device_count=lambda: count)


class OnCuda:
    """An array that says that it lies on a CUDA device."""

    def __init__(self) -> None:
        self.__cuda_array_interface__ = {"shape": (3,), "typestr": "<f4", "data": (0, False)}


@pytest.mark.parametrize(
    ("native", "message"),
    [
        (None, "TERSEGRAD_CUDA=ON.*TERSEGRAD_CUDA_PYPI=1"),
        (stand_in(0), "580.*no driver"),
        (stand_in(12060), "580.*CUDA 12.6"),
        (stand_in(13000, 0), "nvidia-smi"),
    ],
    ids=["no module", "no driver", "old driver", "no device"],
)
def test_what_cannot_be_used_says_what_to_do(
    native: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tersegrad.device import registry

    monkeypatch.setitem(sys.modules, "tersegrad._cuda", native)
    monkeypatch.setattr(registry, "_backends", {})
    with pytest.raises(tg.BackendError, match=message):
        tg.compress(OnCuda(), CODEC)  # type: ignore[arg-type]


def test_importing_and_using_the_host_loads_no_device_module() -> None:
    script = (
        "import sys, torch, tersegrad as tg; bytes(tg.compress(torch.ones(9), tg.Sign()));"
        "print('tersegrad._cuda' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# --- Memory. ---


def test_a_workspace_is_kept_for_each_stream_and_grows() -> None:
    with serving("cpu", EMULATION) as backend:
        device = torch.device("cpu")
        first = backend.workspace(100, device, 1)
        assert backend.workspace(50, device, 1) is first
        assert backend.workspace(100, device, 2) is not first
        assert backend.workspace(200, device, 1).numel() == 200


# --- On a CUDA device alone. ---


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    with on("cuda") as device:
        yield device


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
@pytest.mark.cuda
@CUDA.marks[1]
def test_a_step_waits_for_nothing(codec: tg.Codec, cuda: torch.device) -> None:
    """torch raises at any call of its own that waits, and the kernels have no way to."""
    feedback = tg.ErrorFeedback(codec, nonfinite="skip")
    x, total = as_torch(gradient(100_000)), torch.zeros(100_000)
    feedback.compress(x, key="w")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            payload = feedback.compress(x, key="w")
            tg.decompress(payload, out=total, accumulate=True, scale=0.5)
            tg.decompress_many(feedback.compress_many({"w": x}))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert feedback.skipped == 0


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
@pytest.mark.cuda
@CUDA.marks[1]
def test_a_graph_replays_compress_and_decompress(codec: tg.Codec, cuda: torch.device) -> None:
    x = as_torch(gradient(100_000))
    step, residual = torch.zeros(1, dtype=torch.int32), torch.zeros(100_000)
    out = torch.empty_like(x)

    def work() -> DevicePayload:
        payload = tg.compress(x, codec, residual=residual, step=step)
        tg.decompress(payload, out=out)
        step.add_(1)
        return payload

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # loads the kernels
        work()
    torch.cuda.synchronize()
    step.zero_()
    residual.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        payload = work()
    expected_residual = np.zeros(100_000, np.float32)
    for number in range(3):
        new = gradient(100_000, seed=number)
        x.copy_(torch.from_numpy(new))
        graph.replay()
        expected = tg.compress(new, codec, residual=expected_residual, step=number)
        assert bytes(payload) == bytes(expected)
        assert_same_bits(residual, expected_residual)
        assert_same_bits(out, tg.decompress(expected))


@pytest.mark.cuda
@CUDA.marks[1]
def test_streams_do_not_disturb_each_other(cuda: torch.device) -> None:
    xs = [as_torch(gradient(200_000, seed=i)) for i in range(8)]
    expected = [bytes(tg.compress(x, CODEC)) for x in xs]
    streams = [torch.cuda.Stream() for _ in xs]
    torch.cuda.synchronize()
    payloads = []
    for _ in range(5):
        for x, stream in zip(xs, streams, strict=True):
            with torch.cuda.stream(stream):
                payloads.append(tg.compress(x, CODEC))
    torch.cuda.synchronize()
    assert [bytes(payload) for payload in payloads] == expected * 5


@pytest.mark.cuda
@CUDA.marks[1]
def test_the_memory_of_a_loop_does_not_grow(cuda: torch.device) -> None:
    feedback = tg.ErrorFeedback(CODEC)
    x = as_torch(gradient(1_000_000))
    tg.decompress(feedback.compress(x, key="w"))
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        tg.decompress(feedback.compress(x, key="w"))
    assert torch.cuda.memory_allocated() == before
