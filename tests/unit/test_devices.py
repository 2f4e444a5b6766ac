"""Which devices the workers of a machine get."""

from __future__ import annotations

from studies.worker.devices import choose, cores


def test_one_worker_for_each_gpu_that_may_be_used() -> None:
    devices = choose(None, "2,GPU-5f,MIG-7a")
    assert [device.label for device in devices] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [device.environment["CUDA_VISIBLE_DEVICES"] for device in devices] == ["2", "GPU-5f", "MIG-7a"]
    assert {device.torch for device in devices} == {"cuda"}


def test_more_workers_than_gpus_go_round() -> None:
    assert [device.label for device in choose(3, "0,1")] == ["cuda:0", "cuda:1", "cuda:0"]


def test_without_a_gpu_one_worker_for_each_core_with_one_thread() -> None:
    devices = choose(None, "")
    assert len(devices) == cores() >= 1
    assert {device.torch for device in devices} == {"cpu"}
    assert devices[0].environment["OMP_NUM_THREADS"] == "1"


def test_minus_one_hides_every_gpu() -> None:
    assert {device.label for device in choose(2, "-1")} == {"cpu"}
