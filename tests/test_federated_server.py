"""The server of tersegrad.federated: means, measures, and what it refuses to do."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from arrays import assert_same_bits, kernels
from contract import CODECS, Grid, name_of
from federated_model import ANY, FLOATS, MODEL, TOP, Bomb, assert_same, update

import tersegrad as tg
from tersegrad.federated import Client, Limits, Server, decode


@pytest.mark.parametrize("codec", CODECS, ids=name_of)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("variant", tg.kernels.available())
def test_adding_gives_the_bits_of_decoding_and_adding(
    codec: tg.Codec, threads: int, variant: str
) -> None:
    messages = [Client(codec, min_size=0).encode(update(seed), step=seed) for seed in (1, 2, 3)]
    server = Server(MODEL, limits=ANY)
    sums = {name: np.zeros(MODEL[name].shape, np.float32) for name in FLOATS}
    with kernels(variant, threads):
        for message, weight in zip(messages, (2.0, 0.3, 7.0), strict=True):
            server.add(message, weight)
            for name, values in server.decode(message).items():
                if name in sums:
                    sums[name] = sums[name] + np.float32(weight) * values
        means = server.mean()
    for name, total in sums.items():
        assert_same_bits(means[name], total / np.float32(server.total_weight), name)


def test_integers_come_from_the_message_of_the_greatest_weight_the_first_of_these() -> None:
    server = Server(MODEL)
    for batches, weight in ((5, 1), (6, 3), (7, 2), (8, 3)):
        server.add(Client(TOP).encode(update(1) | {"batches": np.array(batches)}), weight)
    assert server.mean()["batches"] == 6


def test_a_server_tells_how_large_an_update_is() -> None:
    sent = update(3)
    accepted = Server(MODEL).add(message := Client(tg.Identity()).encode(sent))
    entries = np.concatenate([sent[name].reshape(-1) for name in FLOATS]).astype(np.float64)
    assert accepted.nbytes == len(message)
    assert accepted.largest == np.abs(entries).max()
    # Squares are exact to 2**-53 each, and so is every one of fewer sums than entries.
    assert math.isclose(
        accepted.norm, math.sqrt(math.fsum(entries**2)), rel_tol=entries.size * 2.0**-53
    )


def test_there_is_no_mean_of_nothing() -> None:
    server = Server(MODEL)
    with pytest.raises(tg.StateError, match="no message"):
        server.mean()
    server.add(Client(TOP).encode(update(1)), 0)
    with pytest.raises(tg.StateError, match="positive weight"):
        server.mean()
    server.add(Client(TOP).encode(update(1)), 1)
    server.reset()
    assert (server.count, server.total_weight) == (0, 0.0)
    with pytest.raises(tg.StateError):
        server.mean()


def test_a_mean_is_not_changed_by_what_is_added_later() -> None:
    server = Server(MODEL)
    server.add(Client(TOP).encode(update(1)))
    mean, copy = server.mean(), {name: x.copy() for name, x in server.mean().items()}
    server.add(Client(TOP).encode(update(2)), 5)
    assert_same(mean, copy)


def test_a_foreign_codec_is_taken_only_if_it_is_listed_and_its_errors_stay_with_the_client() -> (
    None
):
    layout = {"w": ((9,), "float32")}
    message = Client(Grid(), min_size=0).encode({"w": np.ones(9, np.float32)})
    with pytest.raises(tg.PayloadError, match="Grid"):
        decode(message, layout)
    assert decode(message, layout, limits=Limits(codecs=(Grid,)))["w"].tolist() == [1.0] * 9
    client = Client(Bomb(), min_size=0)
    Bomb._encode, encode = lambda *_: None, Bomb._encode  # type: ignore[method-assign]
    try:
        message = client.encode({"w": np.ones(9, np.float32)})
    except IndexError:  # its residual could not be decoded
        client = Client(Bomb(), min_size=0, error_feedback=False)
        message = client.encode({"w": np.ones(9, np.float32)})
    finally:
        Bomb._encode = encode  # type: ignore[method-assign]
    with pytest.raises(tg.PayloadError, match="out of luck"):
        Server(layout, limits=Limits(codecs=(Bomb,))).add(message)


@pytest.mark.parametrize(
    "model", [[1], {"w": ((2**16, 2**16), "float32")}, {"w": ((-1,), "float32")}, {"w": (3, 4)}]
)
def test_a_layout_that_is_none_is_an_input_error(model: Any) -> None:
    with pytest.raises(tg.InputError):
        Server(model)


def test_it_works_where_there_is_no_torch() -> None:
    code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ml_dtypes", "hypothesis"):
            raise ImportError(name)
sys.meta_path.insert(0, NoTorch())
import numpy as np, tersegrad as tg
model = {"w": np.zeros((50, 20), np.float32), "n": np.zeros((), np.int64)}
client, server = tg.federated.Client(tg.TopK(k=1000)), tg.federated.Server(model)
trained = {"w": np.arange(1000, dtype=np.float32).reshape(50, 20), "n": np.ones((), np.int64)}
for round in range(2):
    server.add(client.encode(trained, base=model), weight=3)
model = tg.federated.apply(model, server.mean())
assert all(np.array_equal(model[k], trained[k]) for k in model)
client.load_state_dict(client.state_dict())
try:
    server.add(b"TGRF")
except tg.PayloadError:
    assert "torch" not in sys.modules
    print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr
