"""Forged federated messages: an honest one, some fields changed, and a checksum that fits again."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tersegrad as tg
from tersegrad import _core
from tersegrad.federated.message import HEADER_BYTES
from tersegrad.message import CODEC_ENTRY

CHECKSUM_AT = HEADER_BYTES - 4
SPARSE = tg.TopK(k=20, values=tg.Quantize(bits=8, block_size=64), indices="u16")
RULES = {
    "bursts": tg.TopK(k=180, values=tg.Quantize(bits=4), indices="runs"),
    "fano": tg.TopK(k=20, indices="elias-fano"),
    "map": tg.TopK(k=300, indices="bitmap"),
    "rice": tg.TopK(k=100, values=tg.Ternary(block_size=64), indices="rice"),
    "sign": tg.Sign(),
    "turned": tg.Rotated(3, block=256),
}
MODEL: dict[str, np.ndarray] = {
    "batches": np.zeros((), np.int64),
    "bursts": np.zeros(240, np.float32),
    "fano": np.zeros((30, 21), np.float32),
    "frozen": np.zeros(5, bool),
    "map": np.zeros(601, np.float32),
    "rice": np.zeros((50, 41), np.float32),
    "sign": np.zeros(333, np.float32),
    "tiny": np.zeros(7, np.float32),
    "turned": np.zeros(1001, np.float32),
    "wide": np.zeros((70, 1000), np.float32),
}  # fmt: skip
LAYOUT = tg.federated.Layout.of(MODEL)


def update(seed: int) -> dict[str, np.ndarray]:
    """What an honest client trains."""
    rng = np.random.default_rng(seed)
    floats = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in MODEL.items()}
    return floats | {"batches": np.int64(seed) + MODEL["batches"], "frozen": MODEL["frozen"]}


def client() -> tg.federated.Client:
    return tg.federated.Client(SPARSE, rules=RULES, min_size=8)


def sealed(message: bytes | bytearray) -> bytes:
    """The message with the checksum that fits: an attacker computes it too."""
    raw = bytearray(message)
    if len(raw) >= HEADER_BYTES:
        checksum = _core.crc32c(bytes(raw[HEADER_BYTES:]), _core.crc32c(bytes(raw[:CHECKSUM_AT])))
        raw[CHECKSUM_AT:HEADER_BYTES] = struct.pack("<I", checksum)
    return bytes(raw)


@dataclass
class Offsets:
    """Where the parts of an honest message of `client` lie."""

    message: bytes
    numbers: int = field(init=False)
    bodies: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = HEADER_BYTES + CODEC_ENTRY.size * self.message[5]
        at = self.numbers + len(LAYOUT)
        self.bodies = {}
        for tensor in LAYOUT:
            self.bodies[tensor.name] = at
            codec = RULES.get(tensor.name, SPARSE)
            at += (
                MODEL[tensor.name].nbytes
                if tensor.is_exact or tensor.name == "tiny"
                else codec._size_in(
                    np.frombuffer(self.message, np.uint8)[at:], tensor.size, "float32"
                )
            )
        self.end = at


Forge = Callable[[bytes], tuple[Any, Any]]
FORGERIES: dict[str, Forge] = {}


def forgery(make: Callable[[bytearray, Offsets], Any]) -> Callable[[bytearray, Offsets], Any]:
    """Registers a forgery under its name. It changes the message or returns another; the checksum is mended after it."""

    def forge(message: bytes) -> tuple[Any, Any]:
        raw = bytearray(message)
        return sealed(make(raw, Offsets(message)) or raw), 1.0

    FORGERIES[make.__name__] = forge
    return make


def put(raw: bytearray, at: int, form: str, *values: Any) -> None:
    struct.pack_into("<" + form, raw, at, *values)


@forgery
def a_body_cut_by_a_byte(raw: bytearray, at: Offsets) -> Any:
    return raw[:-1]


@forgery
def a_header_cut(raw: bytearray, at: Offsets) -> Any:
    return raw[:20]


@forgery
def tables_cut(raw: bytearray, at: Offsets) -> Any:
    return raw[: at.numbers + 2]


@forgery
def a_byte_too_many(raw: bytearray, at: Offsets) -> Any:
    return raw + b"\0"


@forgery
def another_magic(raw: bytearray, at: Offsets) -> Any:
    raw[0] ^= 1


@forgery
def another_version(raw: bytearray, at: Offsets) -> Any:
    raw[4] = 2


@forgery
def flags_set(raw: bytearray, at: Offsets) -> Any:
    raw[7] = 1


@forgery
def a_layout_whose_shapes_overflow(raw: bytearray, at: Offsets) -> Any:
    # A product that wraps to 4 in 64 bits: it broke two C++ readers of safetensors.
    shape = (4194305, 4194305, 211106198978564)
    head = struct.pack("<4sBBBB20sQI3Q", b"TGRD", 1, 1, 1, 3, b"", 16, 0, *shape)
    return head + bytes(16)


@forgery
def the_layout_of_another_model(raw: bytearray, at: Offsets) -> Any:
    raw[12:28] = tg.federated.Layout.of({**MODEL, "tiny": np.zeros(1, np.float32)}).digest


@forgery
def an_unknown_codec(raw: bytearray, at: Offsets) -> Any:
    raw[HEADER_BYTES] = 99


@forgery
def two_hundred_codecs(raw: bytearray, at: Offsets) -> Any:
    raw[5] = 200


@forgery
def a_codec_that_no_tensor_uses(raw: bytearray, at: Offsets) -> Any:
    raw[5] += 1
    raw[at.numbers : at.numbers] = CODEC_ENTRY.pack(tg.Identity.id, b"", b"")


@forgery
def a_codec_number_beyond_the_table(raw: bytearray, at: Offsets) -> Any:
    raw[at.numbers + 1] = 77


@forgery
def a_float_that_claims_to_travel_exactly(raw: bytearray, at: Offsets) -> Any:
    raw[at.numbers + 5] = 255


@forgery
def an_integer_that_claims_a_codec(raw: bytearray, at: Offsets) -> Any:
    raw[at.numbers] = 0


@forgery
def parameters_that_mean_nothing(raw: bytearray, at: Offsets) -> Any:
    put(raw, HEADER_BYTES + 4, "d", float("nan"))  # the density of the first top-k


@forgery
def more_indices_than_entries(raw: bytearray, at: Offsets) -> Any:
    put(raw, HEADER_BYTES + 4 + 8, "I", 2**32 - 1)


@forgery
def unused_parameters_set(raw: bytearray, at: Offsets) -> Any:
    raw[HEADER_BYTES + 1] = 1


@forgery
def a_scale_that_is_not_a_number(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["sign"], "f", float("nan"))


@forgery
def a_negative_scale(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["sign"], "f", -1.0)


@forgery
def an_infinite_scale(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["wide"] + 8 + 40, "f", float("inf"))  # after two counts and twenty indices


@forgery
def a_value_that_is_not_a_number(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["tiny"] + 4, "f", float("nan"))


@forgery
def an_index_beyond_the_tensor(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["wide"], "2I", 0, 20)  # all indices in the second range, which ends early
    put(raw, at.bodies["wide"] + 8 + 38, "H", 65535)


@forgery
def a_count_of_indices_near_two_to_the_32(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["wide"], "2I", 2**32 - 1, 21)  # they add up to twenty in 32 bits


@forgery
def an_index_twice(raw: bytearray, at: Offsets) -> Any:
    first = at.bodies["wide"] + 8
    raw[first + 2 : first + 4] = raw[first : first + 2]


@forgery
def indices_that_descend(raw: bytearray, at: Offsets) -> Any:
    first = at.bodies["wide"] + 8
    raw[first : first + 4] = raw[first + 2 : first + 4] + raw[first : first + 2]


@forgery
def high_bits_all_set(raw: bytearray, at: Offsets) -> Any:
    first = at.bodies["fano"]
    raw[first : first + 15] = b"\xff" * 15


@forgery
def one_index_too_many(raw: bytearray, at: Offsets) -> Any:
    bitmap = np.frombuffer(bytes(raw[at.bodies["map"] :][:75]), np.uint8)
    byte = int(np.flatnonzero(bitmap != 255)[0])
    raw[at.bodies["map"] + byte] |= int(bitmap[byte]) + 1


@forgery
def padding_set(raw: bytearray, at: Offsets) -> Any:
    raw[at.bodies["map"] + 75] |= 0x80  # 601 bits take 76 bytes


def _rice_sections(raw: bytearray, at: Offsets) -> tuple[int, int, int]:
    """Where the index stream of "rice" begins, its values begin, and its body ends."""
    begin, end = at.bodies["rice"], at.bodies["sign"]
    return begin, end - RULES["rice"]._value_bytes(2050, "float32"), end


@forgery
def another_first_parameter_of_rice(raw: bytearray, at: Offsets) -> Any:
    raw[at.bodies["rice"]] ^= 0x07


@forgery
def no_parameter_of_rice(raw: bytearray, at: Offsets) -> Any:
    begin, values, _ = _rice_sections(raw, at)
    raw[begin:values] = bytes(values - begin)


@forgery
def high_parts_of_rice_all_set(raw: bytearray, at: Offsets) -> Any:
    _, values, _ = _rice_sections(raw, at)
    raw[values - 12 : values] = b"\xff" * 12


@forgery
def a_rice_stream_longer_by_a_byte(raw: bytearray, at: Offsets) -> Any:
    _, values, _ = _rice_sections(raw, at)
    raw[values:values] = b"\0"


@forgery
def more_rice_indices_than_the_stream_can_hold(raw: bytearray, at: Offsets) -> Any:
    entry = bytes(raw).index(CODEC_ENTRY.pack(5, b"", RULES["rice"]._standing_params()))
    put(raw, entry + 4 + 8, "I", 2**32 - 1)


@forgery
def a_run_more_than_there_are(raw: bytearray, at: Offsets) -> Any:
    (runs,) = struct.unpack_from("<I", raw, at.bodies["bursts"])
    assert 0 < 2 * runs <= 180, "the tensor is sent in runs"
    put(raw, at.bodies["bursts"], "I", runs + 1)


@forgery
def as_many_runs_as_a_number_can_say(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["bursts"], "I", 2**32 - 1)


@forgery
def runs_said_to_be_single_indices(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["bursts"], "I", 0)


@forgery
def ternary_digits_above_242(raw: bytearray, at: Offsets) -> Any:
    raw[at.bodies["sign"] - 1] = 243


@forgery
def ternary_digits_after_the_last(raw: bytearray, at: Offsets) -> Any:
    raw[at.bodies["sign"] - 1] |= 0x80


@forgery
def a_scale_of_rotated_entries_that_is_infinite(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["turned"] + 4, "f", float("inf"))


@forgery
def a_huge_scale_of_rotated_entries(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["turned"], "f", 3e38)


@forgery
def padding_after_rotated_codes(raw: bytearray, at: Offsets) -> Any:
    raw[at.bodies["wide"] - 1] |= 0x80  # 233 codes of 3 bits in the last block


@forgery
def rotated_codes_of_five_bits(raw: bytearray, at: Offsets) -> Any:
    entry = bytes(raw).index(CODEC_ENTRY.pack(10, b"", RULES["turned"]._standing_params()))
    raw[entry + 4] = 5


@forgery
def rotated_blocks_of_two_to_the_forty(raw: bytearray, at: Offsets) -> Any:
    entry = bytes(raw).index(CODEC_ENTRY.pack(10, b"", RULES["turned"]._standing_params()))
    raw[entry + 5] = 40


@forgery
def huge_finite_values(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["tiny"], "7f", *[3e38] * 7)


@forgery
def a_large_norm_of_small_values(raw: bytearray, at: Offsets) -> Any:
    put(raw, at.bodies["sign"], "f", 900.0)


@forgery
def a_truth_value_of_seven(raw: bytearray, at: Offsets) -> Any:
    raw[at.bodies["frozen"]] = 7


def _other(name: str, message: Any, weight: Any = 1.0) -> None:
    FORGERIES[name] = lambda honest: (honest if message is None else message, weight)


_npy = io.BytesIO()
np.lib.format.write_array_header_1_0(
    _npy, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
)
_other("nothing", b"")
_other("not_bytes", "TGRF")
_other("an_array_file_of_a_terabyte", _npy.getvalue())
_other("a_pickle", b"cos\nsystem\n(S'true'\ntR.")
_other("a_compressed_bomb", bytes.fromhex("1f8b0800000000000203") + bytes(100))
_other("a_payload", bytes(tg.compress(np.ones(9, np.float32), tg.Sign())))
_other("a_plain_message", bytes(tg.compress_many([np.ones(9, np.float32)], tg.Sign())))
_other("a_negative_weight", None, -35)
_other("a_weight_that_is_not_a_number", None, float("nan"))
_other("an_infinite_weight", None, float("inf"))
_other("a_weight_of_a_trillion", None, 1e12)
_other("a_weight_that_is_no_number_at_all", None, "1")
FORGERIES["a_flipped_bit"] = lambda honest: (
    honest[:-9] + bytes([honest[-9] ^ 4]) + honest[-8:],
    1.0,
)
