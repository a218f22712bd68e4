from dataclasses import replace

import pytest
import torch

import sidebranch as sb
from sidebranch import device as module
from sidebranch.config.schema import RuntimeConfig
from sidebranch.device import WORTH_COMPILING, FullBatches, compile_network, kernels, resolve

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIVEN = RuntimeConfig(precision="32-true", channels_last="yes")


@pytest.fixture
def gpu(monkeypatch):
    """A modern device with Triton, as far as one can ask."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())


def test_a_cpu_is_not_compiled_for_by_itself():
    assert resolve(GIVEN, CPU, 10**6).compile is False
    assert resolve(replace(GIVEN, compile=True), CPU).compile is True


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_compiled_for_where_the_run_is_long():
    assert resolve(GIVEN, CUDA, WORTH_COMPILING).compile == "cuda_graphs"
    assert resolve(GIVEN, CUDA, WORTH_COMPILING, processes=2).compile is True
    short = resolve(GIVEN, CUDA, WORTH_COMPILING - 1)
    assert short.compile is False
    assert str(short) == "32-true, channels-last\nnot compiled: 1,999 steps do not earn it back"
    assert resolve(replace(GIVEN, checkpoint_activations=True), CUDA, WORTH_COMPILING).compile is False
    assert resolve(replace(GIVEN, compile=False), CUDA, WORTH_COMPILING).compile is False
    assert resolve(replace(GIVEN, compile="cuda_graphs"), CUDA).compile == "cuda_graphs"


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_the_means_is_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert resolve(GIVEN, CUDA, WORTH_COMPILING).because == "the device is too old for Triton"
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert resolve(GIVEN, CUDA, WORTH_COMPILING).because == "no Triton for this device"


def test_cuda_graphs_need_cuda():
    with pytest.raises(sb.UserError, match="cuda_graphs needs a CUDA device, this is cpu"):
        resolve(replace(GIVEN, compile="cuda_graphs"), CPU)


def test_how_it_is_compiled():
    modes = []

    class Network(torch.nn.Module):
        def compile(self, mode=None):
            modes.append(mode)

    for how in (False, True, "cuda_graphs"):
        compile_network(Network(), how)
    assert modes == [None, "reduce-overhead"]


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_are_picked_for_as_long_as_it_lasts(deterministic):
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    with kernels(deterministic):
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.backends.cudnn.benchmark != deterministic
    assert before == (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark)


def test_smaller_batches_are_not_compiled_for():
    sizes = []

    def backend(graph, inputs):
        sizes.append(inputs[0].shape[0])
        return graph

    network, full_batches = (
        torch.compile(lambda images: images.sum() + 1, backend=backend, dynamic=False),
        FullBatches(),
    )
    for size in (2, 4, 4, 2, 3, 4):
        with full_batches(size):
            assert network(torch.ones(size, 1)) == size + 1
    assert sizes == [2, 4]
    sizes.clear()
    network, full_batches = (
        torch.compile(lambda images: images.sum() + 2, backend=backend, dynamic=False),
        FullBatches(5),
    )
    for size in (2, 6, 5, 6, 4):
        with full_batches(size):
            assert network(torch.ones(size, 1)) == size + 2
    assert sizes == [6, 5]
