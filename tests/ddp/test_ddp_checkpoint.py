"""Laws of the DDP hook: checkpoints and copies."""

from __future__ import annotations

from pathlib import Path

import pytest
from ddp_workers import Results, same

import tersegrad as tg
from tersegrad.ddp import CompressionState, load_distributed, merge_states


@pytest.mark.parametrize("name", ["top-k", "stochastic", "two_step, momentum", "warming up"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_training_resumes_to_the_bit(run: Results, name: str, ranks: int) -> None:
    for rank, result in enumerate(run("resume") if ranks == 2 else run("resume_of_three")):
        assert same(result[name]["straight"], result[name]["resumed"])
        hook = result[name]["hook"]
        assert (hook["step"], list(hook["ranks"]), hook["world_size"]) == (3, [str(rank)], ranks)


def test_a_checkpoint_names_parameters_as_the_bare_model_does(run: Results) -> None:
    hook = run("resume")[0]["top-k"]["hook"]
    residuals = hook["ranks"]["0"]["residuals"]
    assert list(residuals) == [f"{2 * layer}.weight" for layer in range(16)]
    assert all(residual.any() for residual in residuals.values())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unbound", "state.bind(model)"),
        ("names", "head.weight"),
        ("shape", "0.weight has shape (48, 48), its residual has shape (2, 2)"),
        ("rank", "every rank loads the state it saved"),
        ("ranks", "merge_states"),
        ("version", "version 2"),
        ("not a state", "ranks"),
        ("model", "missing in the model: head.weight"),
        ("model", "unknown to the checkpoint: 2.weight"),
        ("model", "0.bias is (48,), was (7,)"),
        ("another model", "2.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_why(run: Results, name: str, words: str) -> None:
    for result in run("checkpoint_errors"):
        assert words in result["messages"][name]
        assert result["unchanged"]


def test_a_copied_or_pickled_model_takes_its_residuals_with_it(run: Results) -> None:
    for result in run("copies"):
        assert same(result["original"], result["deepcopy"])
        assert same(result["original"], result["pickle"])


def test_a_copy_that_lost_its_process_group_or_scaler_says_so(run: Results) -> None:
    for result in run("copies"):
        assert "state.process_group" in result["no group"]
        assert "state.scaler" in result["no scaler"]


@pytest.mark.parametrize("name", ["top-k", "two_step, momentum"])
def test_training_resumes_to_the_bit_through_a_distributed_checkpoint(
    run: Results, name: str
) -> None:
    for result in run("distributed_checkpoint"):
        assert result[name]["same"]
        assert same(result[name]["straight"], result[name]["resumed"])
        assert "nothing" in result[name]["lacking"]


def test_merging_needs_the_states_of_all_ranks_and_of_one_step() -> None:
    common = {"version": 2, "step": 0, "skipped": 0, "scale": 1.0, "node_size": 1, "shapes": {}}
    state = {**common, "world_size": 2, "ranks": {"0": {}}}
    for states in ([], [state]):
        with pytest.raises(tg.StateError, match="every rank"):
            merge_states(states)
    with pytest.raises(tg.StateError, match="step"):
        merge_states([state, {**state, "ranks": {"1": {}}, "step": 3}])
    merged = merge_states([state, {**state, "ranks": {"1": {}}}])
    assert sorted(merged["ranks"]) == ["0", "1"]


def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(tg.StateError, match="no distributed checkpoint"):
        load_distributed(CompressionState(tg.Sign()), tmp_path)
