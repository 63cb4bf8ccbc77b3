"""Laws of the DDP hook with three and four ranks: exchanges, nodes, other numbers of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ddp_workers
import pytest
import torch
from ddp_workers import Results, same

from tersegrad.ddp.memory import split


@pytest.mark.parametrize("exchange", ["all_gather", "two_step"])
def test_three_ranks_follow_the_simulation(run: Results, exchange: str) -> None:
    results = [result["results"][exchange] for result in run("three_ranks")]
    for result in results:
        assert same(result["weights"], results[0]["simulated"])


def test_auto_takes_two_steps_where_they_spare_a_mebibyte(run: Results) -> None:
    for result in run("three_ranks"):
        assert result["forms"] == {"small": {"all_gather"}, "large": {"two_step"}}
        for name in ("small", "large"):
            first = run("three_ranks")[0]["results"][f"auto {name}"]
            assert same(result["results"][f"auto {name}"]["weights"], first["weights"])


@pytest.mark.parametrize("name", ["all_gather", "two_step"])
def test_nodes_average_inside_and_compress_between(run: Results, name: str) -> None:
    results = [result[name] for result in run("two_nodes")]
    for result in results:
        assert same(result["weights"], results[0]["simulated"])
        assert same(result["resumed"], result["weights"])
    assert [len(result["residuals"]) for result in results] == [3, 0, 3, 0]
    assert [result["sent"] > 0 for result in results] == [True, False, True, False]


def test_nodes_warm_up_together(run: Results) -> None:
    results = [result["warmup"]["weights"] for result in run("two_nodes")]
    assert all(same(result, results[0]) for result in results)


def test_a_leader_that_fails_stops_every_rank_of_every_node(run: Results) -> None:
    first, second, third, fourth = (result["broken"] for result in run("failing_leader"))
    assert "rank 1 could not compress" in first
    assert "the leader is broken" in third
    assert "leader of this node failed" in second
    assert "leader of this node failed" in fourth


def test_a_rule_that_fails_on_one_rank_of_a_node_stops_all_nodes_at_once(run: Results) -> None:
    for rank, result in enumerate(run("failing_rule_in_a_node")):
        for name, found in result.items():
            assert found["took"] < 30, (rank, name)  # the groups' own limit is 60
            assert found["says"]
            assert ("the rule is broken" in found["says"]) == (str(rank) == name[0])


def test_a_bad_number_inside_a_node_undoes_the_step_in_all_nodes(run: Results) -> None:
    for result in run("failing_leader"):
        assert result["kept"]
        assert result["skipped"] == 1


def test_a_leader_must_be_in_the_group_between_nodes(run: Results) -> None:
    assert "(inside, between)" in run("failing_leader")[0]["no leader"]


@pytest.mark.parametrize("exchange", ["all_gather", "two_step"])
def test_what_is_not_sent_yet_has_the_same_sum_over_fewer_ranks(
    run: Results, exchange: str
) -> None:
    """A second residual is of the mean, so it counts as often as there were ranks."""
    first, second = (result[exchange] for result in run("fewer_ranks")[:2])
    old, new = first["old"], {**first["new"]["ranks"], **second["new"]["ranks"]}
    assert first["same"]
    assert second["same"]
    for name, residual in new["0"]["residuals"].items():
        before = sum(
            state["ranks"][str(rank)]["residuals"][name].double() for rank, state in enumerate(old)
        )
        for rank, state in enumerate(old):
            own = state["ranks"][str(rank)]["seconds"]
            if name in own:
                before = before + 4 * placed(name, rank, own[name], residual.shape)
        after = residual.double() + new["1"]["residuals"][name].double()
        # One rounding to float32, of half the sum: its error is at most 2^-24 of it.
        assert bool(((after - before).abs() <= 2.0**-24 * before.abs()).all())
        assert bool((before != 0).any())
    assert not any(second.any() for second in new["0"]["seconds"].values())


def placed(name: str, rank: int, part: torch.Tensor, shape: Any) -> torch.Tensor:
    """A second residual at its place in the parameter."""
    loads, flat = [0] * 4, torch.zeros(shape).flatten().double()
    for own, parameter in ddp_workers.wide_model().named_parameters():
        parts = split(parameter.numel(), loads)
        for each in parts:
            if own == name and each.owner == rank:
                flat[each.start : each.stop] = part.double()
    return flat.view(shape)


@pytest.mark.parametrize("exchange", ["all_gather", "two_step"])
def test_velocities_keep_their_mean_over_fewer_ranks(run: Results, exchange: str) -> None:
    first, second = (result[exchange] for result in run("fewer_ranks")[:2])
    old = [state["ranks"][str(rank)]["velocities"] for rank, state in enumerate(first["old"])]
    for name, velocity in first["new"]["ranks"]["0"]["velocities"].items():
        assert torch.equal(velocity, second["new"]["ranks"]["1"]["velocities"][name])
        mean = sum(each[name].double() for each in old) / 4
        assert bool(((velocity.double() - mean).abs() <= 2.0**-24 * mean.abs()).all())


def test_fewer_ranks_train_on_alike(run: Results) -> None:
    first, second = run("fewer_ranks")[:2]
    for exchange in ("all_gather", "two_step"):
        assert same(first[exchange]["weights"], second[exchange]["weights"])
        assert "merge_states" in first[exchange]["lone"]


def test_every_scenario_has_a_test() -> None:
    """A new one is not forgotten."""
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_ddp_*.py"))
    names = ddp_workers.load_scenarios()
    assert [name for name in names if f'"{name}"' not in source] == []
