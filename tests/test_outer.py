"""Laws of OuterSync. Two real workers over gloo run the scenarios of outer_scenarios.py once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import outer_scenarios as scenarios  # noqa: E402
from torch import nn  # noqa: E402
from two_workers import Results, running, same  # noqa: E402

import tersegrad as tg  # noqa: E402
from tersegrad.outer import OuterSync  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    with running(tmp_path_factory.mktemp("outer"), scenarios.SCENARIOS) as results:
        yield results


# --- What a synchronisation does. ---


def test_workers_follow_compress_and_decompress_to_the_bit(run: Results) -> None:
    """Also the workers that start with other weights: those of rank 0 are sent to all."""
    first, second = run("followed")
    assert len(first) == 7
    for name, result in first.items():
        assert same(result["weights"], second[name]["weights"]), name
        assert same(result["weights"], result["simulated"]), name


def test_workers_meet_every_inner_steps_with_one_message_of_a_known_size(run: Results) -> None:
    for result in run("schedule"):
        assert result["met"] == [False, False, False, True] * 2 + [False, False]
        assert result["calls"] == ["irecv", "isend"] * 2
        assert result["message"] == result["arithmetic"]
        assert result["stats"]["sent_bytes"] == 2 * result["message"]
        assert result["stats"]["received_bytes"] == 2 * result["message"]
        for part in ("compress_seconds", "wait_seconds", "decode_seconds"):
            assert result["stats"][part] > 0, part
        assert result["stats"]["dense_bytes"] == result["dense"]
        assert (result["stats"]["steps"], result["stats"]["syncs"]) == (10, 2)


def test_rare_and_compressed_synchronisation_learns(run: Results) -> None:
    first, second = run("learning")
    assert same(first["weights"], second["weights"])
    for result in (first, second):
        assert result["losses"][-1] < 0.1 * result["losses"][0]
        assert result["stats"]["ratio"] > 100
        assert result["stats"]["residual_norm"] > 0


def test_half_precision_parameters_that_do_not_move_stay(run: Results) -> None:
    """What rounding the anchor to half precision loses is no pseudo-gradient."""
    first, second = run("half_precision")
    for name in ("torch.bfloat16", "torch.float16"):
        assert same(first[name]["start"], first[name]["still"])
        assert same(first[name]["moved"], second[name]["moved"])
        assert not same(first[name]["moved"], first[name]["still"])
        for key, anchor in first[name]["anchor"].items():
            assert anchor.dtype == torch.float32
            assert torch.equal(
                anchor.to(first[name]["moved"][key].dtype), first[name]["moved"][key]
            )


def test_running_statistics_are_averaged_and_other_buffers_left(run: Results) -> None:
    first, second = run("other_tensors")
    assert same(first["started"], second["started"])
    for name in ("1.running_mean", "1.running_var"):
        assert not torch.equal(first["before"][name], second["before"][name])
        mean = first["before"][name] * 0.5 + second["before"][name] * 0.5
        assert same(mean, first["after"][name])
    assert first["after"]["constant"].tolist() == second["after"]["constant"].tolist() == [0, 0, 0]
    assert second["after"]["flags"].tolist() == [True, True]
    assert same(first["after"], second["after"])


def test_frozen_parameters_stay_and_rules_choose_by_name(run: Results) -> None:
    for result in run("other_tensors"):
        assert same(result["started"]["0.weight"], result["after"]["0.weight"])
        assert result["residuals"] == ["2.weight", "2.bias"]


def test_wrapped_models_keep_their_plain_names(run: Results) -> None:
    for result in run("other_tensors"):
        plain = ["0.weight", "0.bias", "2.weight", "2.bias"]
        assert result["wrapped"] == result["compiled"] == plain


# --- Numbers that are not finite, workers that differ. ---


def test_a_worker_that_is_not_finite_is_an_error_on_all_and_changes_nothing(run: Results) -> None:
    for result in run("not_finite"):
        kind, words = result["error"]["raised"]
        assert kind == "NonFiniteError"
        assert "{1: ['2.weight']}" in words
        for key in ("anchor", "momentum", "residuals", "syncs"):
            assert same(result["error"]["before"][key], result["error"]["after"][key])


def test_workers_meet_after_the_parameters_are_mended(run: Results) -> None:
    first, second = run("not_finite")
    assert first["again"][0]
    assert same(first["again"], second["again"])


def test_skip_goes_on_with_the_finite_workers_and_heals_the_other(run: Results) -> None:
    first, second = run("not_finite")
    assert first["skip"]["raised"] is second["skip"]["raised"] is True
    assert first["skip"]["skipped"] == second["skip"]["skipped"] == 1
    assert same(first["skip"]["weights"], second["skip"]["weights"])
    before, after = first["skip"]["before"], first["skip"]["after"]
    for name in ("0.bias", "2.bias"):  # dense: the mean is the first worker's own way
        moved = before["anchor"][name] - first["skip"]["alone"][name]
        velocity = before["momentum"][name] * 0.9 + moved
        assert same(after["momentum"][name], velocity)


def test_a_refused_worker_keeps_its_residual(run: Results) -> None:
    first, second = run("not_finite")
    assert same(second["skip"]["before"]["residuals"], second["skip"]["after"]["residuals"])
    assert not same(first["skip"]["before"]["residuals"], first["skip"]["after"]["residuals"])


def test_skip_is_an_error_when_no_worker_is_left(run: Results) -> None:
    for result in run("not_finite"):
        assert result["nobody left"][0] == "NonFiniteError"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "rank 1 of the group could not compress"),
        ("behind", "of step 1"),
        ("codec", "differ in arguments"),
        ("rules", "differ in arguments"),
        ("other", "differ in arguments"),
        ("model", "model and weights"),
    ],
)
def test_what_differs_between_workers_is_an_error_on_all(
    run: Results, name: str, words: str
) -> None:
    for result in run("disagreements"):
        assert result[name][0] == "StateError"
        assert words in result[name][1]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"inner_steps": 0}, tg.InputError, "inner_steps must be an integer from 1, not 0"),
        ({"inner_steps": 2.5}, tg.InputError, "2.5"),
        ({"codec": "topk"}, tg.CodecError, "'topk'"),
        ({"outer_lr": 0}, tg.InputError, "outer_lr must be a number above 0"),
        ({"outer_lr": float("nan")}, tg.InputError, "outer_lr"),
        ({"momentum": 1.0}, tg.InputError, "momentum must be a number from 0, below 1"),
        ({"momentum": "0.9"}, tg.InputError, "momentum"),
        ({"residual_decay": 0}, tg.InputError, "residual_decay"),
        ({"residual_decay": 1.1}, tg.InputError, "residual_decay"),
        ({"nonfinite": "reset"}, tg.InputError, "'error' or 'skip'"),
        ({"rules": {"*.bias": "dense"}}, tg.CodecError, "'dense'"),
        ({"rules": {1: tg.Sign()}}, tg.InputError, "pattern"),
        ({"min_size": None}, tg.InputError, "min_size"),
        ({}, tg.StateError, "init_process_group"),
    ],
)
def test_arguments_are_checked_first(
    arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        OuterSync(nn.Linear(4, 4), **arguments)


def test_models_that_cannot_be_synchronised_are_refused() -> None:
    double = nn.Linear(4, 4).double()
    frozen = nn.Linear(4, 4).requires_grad_(False)
    with pytest.raises(tg.InputError, match=r"not weight, a Tensor of torch.float64"):
        OuterSync(double)
    with pytest.raises(tg.InputError, match="no parameter with requires_grad"):
        OuterSync(frozen)
    with pytest.raises(tg.InputError, match="not list"):
        OuterSync([nn.Linear(4, 4)])


# --- Checkpoints. ---


@pytest.mark.parametrize("name", ["top-k", "stochastic"])
def test_training_resumes_to_the_bit_in_the_middle_of_a_round(run: Results, name: str) -> None:
    for result in run("resume"):
        assert same(result[name]["straight"], result[name]["resumed"])
        assert result[name]["met"] == [False, True, False, False, False, True, False, False]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not a state", "anchor"),
        ("version", "version 1"),
        ("rank", "every rank loads the state it saved"),
        ("world size", "of 3"),
        ("names", "head.weight"),
        ("shape", "0.weight has shape (40, 40), its momentum has (2,)"),
        ("other momentum", "2.weight"),
        ("model moved", "then load this rank's model, then this state"),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_why(run: Results, name: str, words: str) -> None:
    for result in run("checkpoint_errors"):
        assert result["errors"][name][0] == "StateError"
        assert words in result["errors"][name][1]


def test_a_refused_checkpoint_changes_nothing(run: Results) -> None:
    for result in run("checkpoint_errors"):
        for key in ("anchor", "momentum", "residuals", "inner_step", "syncs"):
            assert same(result["saved"][key], result["after"][key])


def test_every_scenario_has_a_test() -> None:
    source = Path(__file__).read_text()
    assert [name for name in scenarios.SCENARIOS if f'"{name}"' not in source] == []
