import numpy as np
import pytest
import torch

from loraplex_worker.engine.logprobs import token_logprobs


def test_logprobs_and_ranks_equal_those_of_a_sorted_softmax():
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1)) * 3
    token_ids = [0, 5, 17, 120, 255, 299]
    exact = logits.double().log_softmax(dim=1).numpy()
    for row, entry in enumerate(token_logprobs(logits, token_ids, [4] * 6)):
        order = np.argsort(-exact[row], kind="stable")
        assert entry.logprob == pytest.approx(exact[row, token_ids[row]], abs=1e-5)
        assert entry.rank == order.tolist().index(token_ids[row]) + 1
        assert [token_id for token_id, _ in entry.top] == order[:4].tolist()
        assert [logprob for _, logprob in entry.top] == pytest.approx(exact[row, order[:4]].tolist(), abs=1e-5)


def test_each_row_lists_as_many_as_it_asked_for():
    logits = torch.arange(12.0).view(1, 12).repeat(3, 1)
    entries = token_logprobs(logits, [3, 3, 3], [0, 2, 50])
    assert [len(entry.top) for entry in entries] == [0, 2, 12]
    assert token_logprobs(logits, [3, 3, 3], [0, 0, 0])[1].top == ()


def test_ties_are_listed_by_id_and_share_the_best_rank():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0, 3.0]])
    (entry,) = token_logprobs(logits, [4], [3])
    assert entry.rank == 1
    assert [token_id for token_id, _ in entry.top] == [1, 2, 4]
    (entry,) = token_logprobs(logits, [0], [0])
    assert entry.rank == 5
