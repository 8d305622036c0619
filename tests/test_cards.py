"""Kernels go to the card that their tensors are on."""

from types import SimpleNamespace

import torch

from graft.kernels import cards


def test_the_card_of_a_tensor_is_the_current_one_where_it_is_not_already(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", entered.append)
    first, second = (SimpleNamespace(is_cuda=True, device=torch.device("cuda", number)) for number in range(2))
    assert cards.on(first) is cards.on(torch.zeros(1)) is cards.HERE
    cards.on(second)
    assert entered == [torch.device("cuda", 1)]
