"""Laws of the DDP hook with gradients on a device: it is the hook on the host, to the bit, and waits for nothing."""

from __future__ import annotations

from ddp_workers import Results, same, same_tensors


def test_weights_and_memory_are_those_of_the_hook_on_the_host(run: Results) -> None:
    first, second = run("device_equals_host")
    assert len(first) == 12
    for name, pair in first.items():
        host, device = pair["host"], pair["device"]
        assert (host["engine"], device["engine"]) == ("Host", "OnDevice")
        assert same(device["weights"], host["weights"]), name
        assert same(device["weights"], second[name]["device"]["weights"]), name
        assert same_tensors(device["memory"], host["memory"]), name
        assert device["nonfinite"] == device["skipped"] == 0, name


def test_a_bad_step_is_undone_and_a_zero_gradient_sends_nothing_there_too(run: Results) -> None:
    for result in run("device_rolls_back"):
        assert len(result) == 4
        for name, pair in result.items():
            host, device = pair["host"], pair["device"]
            assert device["lost"] == host["lost"], name
            assert sum(map(sum, host["lost"])) == 1
            assert (host["skipped"], host["nonfinite"]) == (1, 1)
            assert (device["skipped"], device["nonfinite"]) == (1, 1)
            assert same_tensors(device["memory"], host["memory"]), name
            assert same(device["weights"], host["weights"]), name


def test_a_checkpoint_moves_between_host_and_device(run: Results) -> None:
    for result in run("device_resumes"):
        straight = result["straight"]
        for resumed in result["resumed"]:
            assert same_tensors(resumed["model"], straight["model"])
            (own,) = straight["state"]["ranks"].values()
            (again,) = resumed["state"]["ranks"].values()
            assert same_tensors(again["residuals"], own["residuals"])


def test_what_does_not_fit_is_nan_at_once_and_an_error_when_the_host_asks(run: Results) -> None:
    for result in run("device_failures"):
        assert ".cpu()" in result["no form"]
        assert result["nan"] is True
        assert "another layout or step" in result["wrong"]
