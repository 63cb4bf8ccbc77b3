"""Laws of compressed FSDP2. Real workers over gloo run the scenarios of fsdp_scenarios.py once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import fsdp_replica_scenarios as replica_scenarios  # noqa: E402
import fsdp_scenarios as scenarios  # noqa: E402
from fsdp_models import WIDTH, network  # noqa: E402
from two_workers import Results, running, same  # noqa: E402

COMPRESSED = [
    *("blocks.0.first.weight", "blocks.0.second.weight"),
    *("blocks.1.first.weight", "blocks.1.second.weight", "head.weight"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    with running(tmp_path_factory.mktemp("fsdp"), scenarios.SCENARIOS) as results:
        yield results


@pytest.fixture(scope="module")
def run_four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Results]:
    with running(
        tmp_path_factory.mktemp("fsdp"), replica_scenarios.SCENARIOS, world_size=4
    ) as results:
        yield results


# --- What travels. ---


def test_identity_is_fsdp2_to_the_bit_however_gradients_are_reduced(run: Results) -> None:
    """Of two ranks each sum has one rounding, also in half precision: float32 holds it exactly
    enough (24 bits are at least 2 * 11 + 2) for the second rounding to change nothing."""
    for result in run("lossless"):
        assert len(result) == 8
        for name, pair in result.items():
            assert same(pair["plain"], pair["compressed"]), name
            assert pair["stats"]["reductions"] == 9, name
            assert pair["stats"]["uncompressed"] == 0, name


def test_every_codec_follows_compress_and_decompress_to_the_bit(run: Results) -> None:
    first, second = run("compressed")
    assert len(first) == 10
    for name, result in first.items():
        assert same(result["weights"], result["simulated"]), name
        assert same(result["weights"], second[name]["weights"]), name


def test_no_residual_is_kept_without_error_feedback(run: Results) -> None:
    for name, result in run("compressed")[0].items():
        assert sorted(result["residuals"]) == ([] if "False" in name else COMPRESSED)


def test_top_k_with_error_feedback_learns(run: Results) -> None:
    for result in run("learning"):
        assert result["losses"][-1] < 0.1 * result["losses"][0]
        assert result["norm"] > 0
        assert result["stats"]["ratio"] > 10


def test_each_module_takes_one_all_to_all(run: Results) -> None:
    for calls in run("one_collective_for_each_module"):
        assert calls == ["all_to_all_single"] * 3 * 2


def test_rules_choose_by_name_and_sizes_are_arithmetic(run: Results) -> None:
    for result in run("bytes_by_rules"):
        assert result["sent"] == result["expected"]
        exact = {"blocks.1.scale"}
        assert set(result["residuals"]) == {
            name for name, _ in network().named_parameters() if name not in exact
        }


def test_missing_gradients_go_uncompressed_unless_torch_sends_zeros(run: Results) -> None:
    for result in run("unused_parameters"):
        for zeros in (False, True):
            mine, plain = result[zeros]["grads"]
            assert same(mine, plain)
            assert ("blocks.0.scale" in mine) == zeros
            assert result[zeros]["stats"]["uncompressed"] == (0 if zeros else 1)
            assert result[zeros]["stats"]["reductions"] == 3


def test_shards_of_another_dimension_work(run: Results) -> None:
    for plain, exact, straight, resumed in run("other_dimension"):
        assert same(plain, exact)
        assert same(straight, resumed)
        assert not same(plain, straight)


# --- How it is reduced. ---


def test_the_reduce_operation_is_kept(run: Results) -> None:
    for result in run("operations"):
        assert len(result["results"]) == 9
        for name, (output, expected) in result["results"].items():
            assert same(output, expected), name


def test_a_divide_factor_is_a_premultiplied_sum(run: Results) -> None:
    """By 8 instead of 2: a power of two, so exact."""
    for result in run("divide_factor"):
        for name, gradient in result["grads"].items():
            assert torch.equal(gradient * 4, result["plain"][name]), name
            assert gradient.any()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("max", "InputError", "can SUM, AVG and PREMUL_SUM"),
        ("async", "InputError", "async_op=False"),
        ("float64", "InputError", "reduce_dtype"),
    ],
)
def test_what_torch_never_asks_for_is_refused(
    run: Results, name: str, kind: str, words: str
) -> None:
    for result in run("operations"):
        assert result["errors"][name][0] == kind
        assert words in result["errors"][name][1]


# --- Numbers that are not finite, ranks that differ. ---


def test_a_parameter_that_is_not_finite_on_one_rank_is_nan_on_all(run: Results) -> None:
    for result in run("not_finite"):
        nan = [name for name, g in result["grads"].items() if bool(g.isnan().any())]
        assert nan == ["head.weight"]
        assert result["grads"]["head.weight"].isnan().all()
        assert result["stats"]["nonfinite"] == 1


def test_no_rank_changes_the_residual_of_what_was_not_finite(run: Results) -> None:
    for result in run("not_finite"):
        kept = [n for n, r in result["before"].items() if torch.equal(r, result["after"][n])]
        assert kept == ["head.weight"]
        assert all(residual.any() for residual in result["before"].values())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "rank 1 of the group could not compress"),
        ("differing", "codec, rules or min_size"),
        ("behind", "step"),
    ],
)
def test_what_fails_on_one_rank_is_an_error_on_all(run: Results, name: str, words: str) -> None:
    for result in run("failures"):
        assert result[name][0] == "StateError"
        assert words in result[name][1]
    assert "ArithmeticError: the codec is broken" in run("failures")[1]["broken"][1]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("plain", "StateError", "fully_shard"),
        ("no module", "InputError", "torch.nn.Module"),
        ("fsdp1", "StateError", "FSDP1"),
        ("twice", "StateError", "already"),
        ("twice, otherwise", "StateError", "already"),
        ("custom", "StateError", "'blocks.1'"),
        ("codec", "CodecError", "'topk'"),
        ("class", "CodecError", "not its class"),
        ("rule", "CodecError", "3"),
        ("rules", "InputError", "patterns"),
        ("min_size", "InputError", "-1"),
        ("group", "InputError", "'all'"),
        ("two dimensions", "StateError", "mesh of one dimension"),
        ("rescale", "InputError", "nan"),
    ],
)
def test_refusals_say_why(run: Results, name: str, kind: str, words: str) -> None:
    for result in run("refusals"):
        assert result["errors"][name][0] == kind
        assert words in result["errors"][name][1]


def test_a_refusal_installs_nothing(run: Results) -> None:
    assert run("refusals")[0]["unchanged"] == "DefaultReduceScatter"


# --- Checkpoints. ---


@pytest.mark.parametrize("name", ["top-k", "stochastic"])
def test_training_resumes_to_the_bit(run: Results, name: str) -> None:
    for result in run("resume"):
        assert same(result[name]["straight"], result[name]["resumed"])
        assert sorted(result[name]["names"]) == COMPRESSED


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("not a state", "residuals"),
        ("version", "version 1"),
        ("rank", "every rank loads the state it saved"),
        ("world size", "of 3"),
        ("names", "gone.weight"),
        ("shape", "head.weight has shape (2,)"),
        ("modules", "body"),
        ("model", "head.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_why(run: Results, name: str, words: str) -> None:
    for result in run("checkpoint_errors"):
        assert result["errors"][name][0] == "StateError"
        assert words in result["errors"][name][1]
        assert same(*result["unchanged"])


def test_residuals_are_rescaled_and_forgotten(run: Results) -> None:
    for result in run("checkpoint_errors"):
        norm, halved, nothing = result["norms"]
        assert halved == norm / 2 > 0  # halves are exact
        assert nothing == 0


# --- Replicas. ---


def test_replicas_with_identity_are_torchs_hybrid_sharding_to_the_bit(run_four: Results) -> None:
    for result in run_four("replicas"):
        assert same(result["native"], result["exact"])


def test_replicas_stay_equal_to_the_bit_and_learn(run_four: Results) -> None:
    results = run_four("replicas")
    for result in results:
        assert same(result["weights"], results[0]["weights"])
        assert result["losses"][-1] < 0.5 * result["losses"][0]
        assert result["stats"]["ratio"] > 10


def test_the_residual_of_replicas_has_the_size_of_the_shard(run_four: Results) -> None:
    entries = [result["residual entries"] for result in run_four("replicas")]
    rows, width = 19, WIDTH
    assert entries == [5 * rows * width, 5 * (width - rows) * width] * 2


def test_replicas_resume_to_the_bit(run_four: Results) -> None:
    for result in run_four("replicas_resume"):
        assert same(result["straight"], result["resumed"])


def test_replicas_agree_on_what_is_not_finite(run_four: Results) -> None:
    results = run_four("replicas_not_finite")
    for rank, result in enumerate(results):
        assert "head.weight" in result["nan"]
        assert same(result["before"]["head.weight"], result["after"]["head.weight"])
        assert result["nan"] == results[(rank + 2) % 4]["nan"]


def test_the_shards_of_native_replicas_are_compressed(run_four: Results) -> None:
    for result in run_four("native_replicas"):
        assert same(result["plain"], result["exact"])
        assert result["replicate"][0] == "StateError"


def test_every_scenario_has_a_test() -> None:
    source = Path(__file__).read_text()
    names = [*scenarios.SCENARIOS, *replica_scenarios.SCENARIOS]
    assert [name for name in names if f'"{name}"' not in source] == []


# --- Gradients on a device. ---


def test_weights_and_residuals_are_those_of_the_host_on_a_device(run: Results) -> None:
    for result in run("on_a_device"):
        assert len(result) == 6
        for name, pair in result.items():
            host, device = pair["host"], pair["device"]
            assert device["ledger"], name
            assert not host["ledger"], name
            assert same(device["weights"], host["weights"]), name
            assert same(device["residuals"], host["residuals"]), name
            assert (device["lost"], device["nonfinite"]) == (host["lost"], host["nonfinite"]), name
            assert host["nonfinite"] > 0


def test_ranks_that_disagree_on_a_device_get_nan_and_an_error_when_they_ask(run: Results) -> None:
    for result in run("disagreement_on_a_device"):
        assert all(result["nan"])
        kind, message = result["error"]
        assert (kind, "same arguments" in message) == ("StateError", True)
