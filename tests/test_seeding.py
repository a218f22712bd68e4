import torch

from sidebranch.seeding import generator, seed_of, uniform


def test_keys_are_told_apart():
    seeds = {seed_of("a", 1), seed_of("a", 2), seed_of("b", 1), seed_of(1, "a"), seed_of("a/1"), seed_of("a", 1, 0)}
    assert len(seeds) >= 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("order", 3, 7) == 2476423470097874310


def test_a_number_depends_on_its_index_and_keys_alone():
    whole = uniform(torch.arange(1000), "flip", 0, 3)
    shuffled = torch.randperm(1000)
    assert torch.equal(uniform(shuffled, "flip", 0, 3), whole[shuffled])
    assert torch.equal(uniform(torch.tensor([7]), "flip", 0, 3), whole[7:8])
    assert not torch.equal(uniform(torch.arange(1000), "flip", 0, 4), whole)


def test_uniform_is_uniform_and_uncorrelated():
    draws = uniform(torch.arange(200_000), "x")
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws.double(), 50, 0, 1)
    assert ((counts - 4000) ** 2 / 4000).sum() < 100  # chi-squared of 49 degrees of freedom: 1 in 10,000 is above 95
    pairs = torch.stack([draws[:-1], draws[1:], uniform(torch.arange(200_000), "y")[:-1]])
    assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < 0.01


def test_generators_repeat():
    assert torch.equal(torch.rand(4, generator=generator("a", 1)), torch.rand(4, generator=generator("a", 1)))


def test_keys_are_not_run_together():
    assert seed_of("a/b") != seed_of("a", "b")
    assert seed_of("a\\", "b") != seed_of("a\\/b")
    assert len({seed_of("a", "", "b"), seed_of("a/", "b"), seed_of("a", "/b"), seed_of("a//b")}) == 4


def test_seeds_are_those_of_earlier_versions():
    assert seed_of("order", 0, 1) == 9205141000279108220
