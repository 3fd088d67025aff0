from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.training.sharded.ema import ShardedEMA


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6), st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
)
def test_follows_the_formula_and_rounds_only_what_is_published(momenta: list[float], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(len(momenta))
    master = torch.randn(7, generator=generator)
    target = torch.zeros(7, dtype=dtype)
    ema = ShardedEMA({"w": master}, {"w": target})
    expected = master.double()
    for momentum in momenta:
        master.add_(torch.randn(7, generator=generator))  # the optimizer writes in place
        ema.update(momentum)
        expected = momentum * expected + (1 - momentum) * master.double()
    torch.testing.assert_close(ema.state()["w"].double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(target, ema.state()["w"].to(dtype))


def test_small_updates_are_not_lost_although_the_target_is_half_precision() -> None:
    master, target = torch.ones(1), torch.zeros(1, dtype=torch.float16)
    ema = ShardedEMA({"w": master}, {"w": target})
    master.fill_(1.5)
    for _ in range(1000):
        ema.update(0.9999)  # each moves the weight by 5e-5, a tenth of half precision's step at 1
    assert target.item() == pytest.approx(1.5 - 0.5 * 0.9999**1000, abs=1e-3)


def test_saved_shards_come_back_and_are_published() -> None:
    master = torch.arange(4.0)
    ema = ShardedEMA({"w": master}, {"w": torch.zeros(4)})
    saved = {name: shard.clone() for name, shard in ema.state().items()}
    master.add_(1)
    ema.update(0.5)
    target = torch.zeros(4)
    calls: list[int] = []
    other = ShardedEMA({"w": master}, {"w": target}, lambda: calls.append(1))
    other.load(saved)
    assert torch.equal(target, torch.arange(4.0))
    assert len(calls) == 2


def test_student_and_teacher_that_do_not_match_are_named() -> None:
    with pytest.raises(ValueError, match=r"do not match: b"):
        ShardedEMA({"a": torch.ones(1), "b": torch.ones(1)}, {"a": torch.ones(1)})
    with pytest.raises(ValueError, match=r"a: student shard of 2, teacher shard of 1"):
        ShardedEMA({"a": torch.ones(2)}, {"a": torch.ones(1)})
