"""Ranking, against the protocol written out: one query, one gallery image at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidebranch.errors import UserError
from sidebranch.metrics import People, Ranker, distances_between, rank


def naive(distances, queries, gallery):
    """Average precision and rank of the first match of each query; None and 0 without one."""
    precisions, firsts = [], []
    for row, identity, camera in zip(
        distances.tolist(), queries.identities.tolist(), queries.cameras.tolist(), strict=True
    ):
        people = zip(row, range(len(row)), gallery.identities.tolist(), gallery.cameras.tolist(), strict=True)
        ranked = [who for _, _, who, where in sorted(people) if who != -1 and not (who == identity and where == camera)]
        hits, found = 0, []
        for place, who in enumerate(ranked, 1):
            if who == identity:
                hits += 1
                found.append((hits / place, place))
        precisions.append(sum(each for each, _ in found) / len(found) if found else None)
        firsts.append(found[0][1] if found else 0)
    return precisions, firsts


def assert_equal_to_naive(ranking, distances, queries, gallery):
    precisions, firsts = naive(distances, queries, gallery)
    assert ranking.first.tolist() == firsts
    for ours, wanted in zip(ranking.average_precision.tolist(), precisions, strict=True):
        assert math.isnan(ours) if wanted is None else ours == pytest.approx(wanted, abs=1e-9)
    known = [each for each in precisions if each is not None]
    if known:
        assert ranking.mean_average_precision == pytest.approx(100 * sum(known) / len(known), abs=1e-6)
        for count, share in enumerate(ranking.cmc(20), 1):
            right = sum(0 < first <= count for first in firsts)
            assert share == pytest.approx(100 * right / len(known), abs=1e-6)


@st.composite
def people(draw, least, most):
    """Few identities and cameras, so that junk, distractors and queries without a match all come."""
    count = draw(st.integers(least, most))
    identities = draw(st.lists(st.integers(-1, 4), min_size=count, max_size=count))
    cameras = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    return People(torch.tensor(identities, dtype=torch.int64), torch.tensor(cameras, dtype=torch.int64))


@settings(max_examples=300, deadline=None)
@given(st.data(), people(1, 7), people(0, 40), st.integers(1, 9))
def test_ranking_equals_the_protocol_with_ties_and_junk(data, queries, gallery, chunk):
    levels = data.draw(st.integers(1, 30))  # few levels of distance: many ties
    flat = data.draw(
        st.lists(st.integers(0, levels), min_size=len(queries) * len(gallery), max_size=len(queries) * len(gallery))
    )
    distances = torch.tensor(flat, dtype=torch.float32).view(len(queries), len(gallery))
    ranking = rank(distances, queries, gallery, chunk)
    assert_equal_to_naive(ranking, distances, queries, gallery)
    assert Ranker(queries, gallery).without_match() == int((~ranking.matched).sum())


@settings(max_examples=60, deadline=None)
@given(st.data(), people(1, 6), people(1, 30), st.integers(1, 7))
def test_features_are_ranked_as_their_distances_with_duplicates(data, queries, gallery, chunk):
    """Whole numbers, so that every way of adding up gives the same distance, and duplicated features the same."""
    kinds = data.draw(st.integers(1, 6))
    table = torch.tensor(data.draw(st.lists(st.tuples(*[st.integers(-3, 3)] * 4), min_size=kinds, max_size=kinds)))
    which = st.lists(st.integers(0, kinds - 1), min_size=len(gallery), max_size=len(gallery))
    stored = table[torch.tensor(data.draw(which))].float()
    asked = stored[torch.tensor([data.draw(st.integers(0, len(gallery) - 1)) for _ in range(len(queries))])]
    distances = (asked[:, None] - stored[None]).square().sum(2)
    ranker = Ranker(queries, gallery)
    start = 0
    for rows in distances_between(asked, stored[ranker.kept], "euclidean", chunk):
        assert torch.equal(rows, distances[start : start + len(rows)][:, ranker.kept])
        part = ranker(rows, start)
        these = slice(start, start + len(rows))
        some = People(queries.identities[these], queries.cameras[these])
        assert_equal_to_naive(part, distances[these], some, gallery)
        start += len(rows)
    assert start == len(queries)


def test_cosine_distances_are_those_of_unit_features():
    asked, stored = torch.randn(5, 8), torch.randn(9, 8)
    wanted = 1 - torch.nn.functional.cosine_similarity(asked[:, None], stored[None], dim=2)
    torch.testing.assert_close(torch.cat(list(distances_between(asked, stored, "cosine", 2))), wanted)


def test_a_query_of_one_camera_only_counts_for_nothing():
    queries = People(torch.tensor([1, 2]), torch.tensor([1, 1]))
    gallery = People(torch.tensor([1, 2, 0]), torch.tensor([1, 2, 2]))
    ranking = rank(torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]]), queries, gallery)
    assert ranking.first.tolist() == [0, 3]
    assert ranking.mean_average_precision == pytest.approx(100 / 3)
    assert ranking.cmc(3) == [0.0, 0.0, 100.0]


def test_the_shape_of_a_large_random_case_is_that_of_the_naive_one():
    queries = People(torch.randint(0, 30, (60,)), torch.randint(1, 4, (60,)))
    gallery = People(torch.randint(-1, 30, (900,)), torch.randint(1, 4, (900,)))
    distances = torch.rand(60, 900)
    assert_equal_to_naive(rank(distances, queries, gallery), distances, queries, gallery)


def test_features_that_are_not_finite_are_refused():
    one = People(torch.tensor([1]), torch.tensor([1]))
    with pytest.raises(UserError, match="the features are not finite"):
        rank(torch.tensor([[float("nan")]]), one, one)
