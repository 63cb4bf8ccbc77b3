"""Laws of bodies that add: an all-reduce of them is `tg.add`."""

from __future__ import annotations

from ddp_workers import Results, same


def test_an_all_reduce_of_bodies_is_the_sum_without_decoding(run: Results) -> None:
    first, second = run("bodies_summed_by_all_reduce")
    assert len(first) == 6
    for (name, (summed, expected, decoded)), (_, _, other) in zip(
        first.items(), second.values(), strict=True
    ):
        assert summed == expected, name
        assert same(decoded, other), name
