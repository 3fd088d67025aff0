"""ZeRO-3 on one, two and four gloo ranks against a plain PyTorch loop, in three precisions; resumption, faults."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_worker import BATCH, ELASTIC, MICROS, PARAMS, PRECISIONS, SAVED, STEPS, global_batch, lively_network
from ranks import run_worker
from torch import Tensor, nn

from components.errors import VitrailError
from components.learning.collate import Crops
from components.learning.losses.ibot import masked_patches
from components.learning.objective import Centering, losses
from components.learning.param_groups import param_groups
from components.learning.schedules import Schedules
from components.training.costs.capability import states_per_rank
from components.training.sharded.engine_params import EngineParams, pick_precision

WORKER = Path(__file__).with_name("engine_worker.py")


Results = dict[tuple[int, str], list[dict[str, Any]]]  # (ranks, precision) -> by rank
RANKS = tuple(PRECISIONS)
BOTH = [(ranks, precision) for ranks, precisions in PRECISIONS.items() for precision in precisions]
HALF = [ranks for ranks, precision in BOTH if precision == "fp16"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One launch for every number of ranks, side by side: each goes on from the others' checkpoints."""
    folder = tmp_path_factory.mktemp("engine")
    run_worker(WORKER, folder)
    return {
        (ranks, precision): [
            torch.load(folder / str(ranks) / f"{precision}-rank-{rank}.pt", weights_only=True) for rank in range(ranks)
        ]
        for ranks, precision in BOTH
    }


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The plain loop in both precisions, computed once."""
    torch.set_num_threads(1)
    found = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return {name: plain_loop(dtype) for name, dtype in found.items()}


def plain_loop(dtype: torch.dtype, micros: int = 1, together: bool = False) -> dict[str, Any]:
    """The whole batch through ordinary modules, AdamW, torch's own clipping and a loop over the average.

    With ``together`` gradients are clipped to the limit as one vector, not sub-module by sub-module.
    In half precision with fp32 masters and a fixed loss scale, the modules hold rounded copies.
    """
    masters = lively_network(PARAMS.vit, PARAMS.heads, PARAMS.run.seed)
    average = copy.deepcopy(masters).eval()
    student, teacher = copy.deepcopy(masters).to(dtype), copy.deepcopy(average).to(dtype)
    start = {name: value.detach().clone() for name, value in masters.named_parameters()}
    groups = param_groups(masters, PARAMS.groups.layer_decay, PARAMS.groups.patch_embed_multiplier)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))
    centering = Centering(PARAMS.objective, PARAMS.heads, torch.device("cpu"))
    schedules, rows = Schedules(PARAMS.schedule, STEPS, BATCH), []
    scale = 2.0**PARAMS.engine.loss_scale_power if dtype == torch.float16 else 1.0
    for step in range(STEPS):
        values = schedules.at(step)
        student.zero_grad()
        loss, size = 0.0, BATCH // micros
        for micro in range(micros):
            part = (whole[:, micro * size : (micro + 1) * size].flatten(0, 1) for whole in global_batch(step))
            globals_, locals_, masks = part
            crops, hidden = Crops(globals_.to(dtype), locals_.to(dtype)), masked_patches(masks)
            with torch.no_grad():
                taught = teacher(crops.globals, patches=hidden.positions)
                targets = centering.targets(taught, values.teacher_temperature)
            output = student(crops.globals, crops.locals, masks, hidden.positions)
            found = losses(output, targets, hidden.weights, PARAMS.objective)
            (found.total * scale / micros).backward()
            loss += float(found.total.detach()) / micros
        for master, value in zip(masters.parameters(), student.parameters(), strict=True):
            assert value.grad is not None
            master.grad = value.grad.float() / scale
        norms = {
            name: float(nn.utils.clip_grad_norm_(child.parameters(), PARAMS.engine.clip))
            for name, child in (() if together else masters.named_children())
        }
        if together:
            nn.utils.clip_grad_norm_(masters.parameters(), PARAMS.engine.clip)
        for group in optimizer.param_groups:
            rate = values.last_layer_learning_rate if group["is_last_layer"] else values.learning_rate
            group["lr"] = rate * group["lr_multiplier"]
            group["weight_decay"] = values.weight_decay * group["wd_multiplier"]
        optimizer.step()
        with torch.no_grad():
            for mean, value in zip(average.parameters(), masters.parameters(), strict=True):
                mean.mul_(values.momentum).add_(value, alpha=1 - values.momentum)
        student.load_state_dict(masters.state_dict())
        teacher.load_state_dict(average.state_dict())
        rows.append({"loss": loss, **norms})
    ema = dict(average.named_parameters())
    return {"rows": rows, "start": start, "masters": dict(masters.named_parameters()), "ema": ema}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        one, other = found[name], value.detach()
        if name.endswith("attn.qkv.bias"):
            # The gradient of the keys' bias is zero but for rounding, which AdamW scales up to a full step.
            keep = torch.ones(3, len(one) // 3, dtype=torch.bool)
            keep[1] = False
            one, other = one[keep.flatten()], other[keep.flatten()]
        torch.testing.assert_close(one, other, atol=atol, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


def change(result: dict[str, Tensor], start: dict[str, Tensor]) -> Tensor:
    """All that training changed, as one vector."""
    parts = []
    for name, before in sorted(start.items()):
        moved = result[name].detach() - before
        if name.endswith("attn.qkv.bias"):
            moved = moved.view(3, -1)[[0, 2]]  # see assert_close
        parts.append(moved.flatten())
    return torch.cat(parts)


@pytest.mark.parametrize("ranks", RANKS)
def test_fp32_equals_the_plain_loop_to_rounding(results: Results, plain: dict[str, Any], ranks: int) -> None:
    found, expected = results[ranks, "fp32"], plain["fp32"]
    for step, row in enumerate(expected["rows"]):
        mean = sum(result["rows"][step]["loss"] for result in found) / ranks
        assert mean == pytest.approx(row["loss"], rel=2e-4)
        for name in ("backbone", "dino_head", "ibot_head"):
            assert found[0]["rows"][step][name] == pytest.approx(row[name], rel=2e-4)
    assert_close(found[0]["masters"], expected["masters"], 1e-5)
    assert_close(found[0]["ema"], expected["ema"], 1e-5)


def test_micro_batches_of_different_halves_add_up_to_a_step_of_the_plain_loop(
    results: Results, plain: dict[str, Any]
) -> None:
    found, expected = [result["accumulated"] for result in results[2, "fp32"]], plain_loop(torch.float32, MICROS)
    for step, row in enumerate(expected["rows"]):
        assert (found[0]["rows"][step]["loss"] + found[1]["rows"][step]["loss"]) / 2 == pytest.approx(row["loss"], 2e-4)
        for name in ("backbone", "dino_head", "ibot_head"):
            assert found[0]["rows"][step][name] == pytest.approx(row[name], rel=2e-4)
    assert_close(found[0]["masters"], expected["masters"], 1e-5)
    assert_close(found[0]["ema"], expected["ema"], 1e-5)
    # the whole batch at once is another computation: targets are balanced and neighbours sought within a micro-batch
    assert expected["rows"][0]["loss"] != pytest.approx(plain["fp32"]["rows"][0]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("ranks", "precision"), [(ranks, precision) for ranks, precision in BOTH if precision != "fp32"]
)
def test_sixteen_bits_equal_the_plain_loop_in_them_within_their_own(
    results: Results, plain: dict[str, Any], ranks: int, precision: str
) -> None:
    found, expected = results[ranks, precision], plain[precision]
    near = 5e-3 if precision == "fp16" else 4e-2  # bf16 has three bits less
    assert not any(row["skipped"] for row in found[0]["rows"])
    for step, row in enumerate(expected["rows"]):
        mean = sum(result["rows"][step]["loss"] for result in found) / ranks
        assert mean == pytest.approx(row["loss"], rel=near)
    # AdamW divides by the gradient's size: what is small is moved by the sign of its rounding, so weights are
    # compared as a whole. The two precisions of the plain loop are that far apart, too.
    ours, theirs = change(found[0]["masters"], expected["start"]), change(expected["masters"], expected["start"])
    exact = change(plain["fp32"]["masters"], expected["start"])
    assert (ours - theirs).norm() < 1.5 * (theirs - exact).norm()
    assert (ours - theirs).norm() < 20 * near * theirs.norm()
    assert (found[0]["rows"][0]["backbone"]) == pytest.approx(expected["rows"][0]["backbone"], rel=4 * near)


def test_every_module_is_clipped_by_a_factor_of_its_own(plain: dict[str, Any]) -> None:
    """Else the tests above would not see the clipping, or not that it is sub-module by sub-module, as DINOv2's is."""
    for row in plain["fp32"]["rows"]:
        norms = [row[name] for name in ("backbone", "dino_head", "ibot_head")]
        assert min(norms) > PARAMS.engine.clip
        assert max(norms) > 1.5 * min(norms)
    together, start = plain_loop(torch.float32, together=True)["masters"], plain["fp32"]["start"]
    apart = change(plain["fp32"]["masters"], start)
    assert (change(together, start) - apart).abs().max() > 10 * 1e-5  # the tolerance above


@pytest.mark.parametrize(("ranks", "precision"), BOTH)
def test_sharded_average_equals_a_gathered_one(results: Results, ranks: int, precision: str) -> None:
    found = results[ranks, precision]
    assert_close(found[0]["ema"], found[0]["plain_ema"], 1e-6)
    assert any(not torch.equal(found[0]["ema"][name], found[0]["start"][name]) for name in found[0]["ema"])
    assert all(result["published"] for result in found)


def test_an_engine_imports_neither_mlflow_nor_torchs_compiler(results: Results) -> None:
    assert all(rank["needless"] == [] for ranks in results.values() for rank in ranks)


def test_the_teacher_runs_with_the_average(results: Results) -> None:
    result = results[1, "fp32"][0]
    network = lively_network(PARAMS.vit, PARAMS.heads, 5).eval()
    network.load_state_dict(result["ema"])
    with torch.no_grad():
        expected = network(global_batch(0)[0].flatten(0, 1)).cls
    torch.testing.assert_close(result["teacher_cls"], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("ranks", "precision"), BOTH)
def test_resumed_run_equals_the_unbroken_one_bit_by_bit(results: Results, ranks: int, precision: str) -> None:
    result = results[ranks, precision][0]
    assert result["resumed_rows"] == result["rows"][SAVED:]
    for name, value in result["masters"].items():
        assert torch.equal(result["resumed"][name], value), name
    for name, value in result["ema"].items():
        assert torch.equal(result["resumed_ema"][name], value), name


@pytest.mark.parametrize(
    ("before", "after", "precision"), [(a, b, precision) for (b, precision), many in ELASTIC.items() for a in many]
)
def test_another_number_of_ranks_takes_over_the_very_state_and_goes_on(
    results: Results, before: int, after: int, precision: str
) -> None:
    saved, found = results[before, precision][0]["saved"], results[after, precision][0]["elastic"][before]
    assert saved["rest"] == found["taken"]["rest"]  # AdamW's steps, loss scaler, skipped steps
    for kind in ("master", "exp_avg", "exp_avg_sq", "ema"):
        for name, value in saved[kind].items():
            assert torch.equal(found["taken"][kind][name], value), (kind, name)
    unbroken = results[before, precision][0]
    if precision == "fp32":
        assert_close(found["masters"], unbroken["masters"], 2e-5)
    else:
        ours, theirs = (change(r["masters"], unbroken["start"]) for r in (found, unbroken))
        assert (ours - theirs).norm() < 0.1 * theirs.norm()


@pytest.mark.parametrize(("ranks", "precision"), BOTH)
def test_what_is_not_finite_on_one_rank_skips_the_step_on_all_and_many_stop_the_run(
    results: Results, ranks: int, precision: str
) -> None:
    for result in results[ranks, precision]:
        rows = [*result["bad gradient"], *result["bad loss"]]
        assert [(row["skipped"], row["bad"]) for row in rows] == [(True, 0), (True, 1)]
        assert result["unharmed"]
        # the third that counts, a loss that is infinite although its gradients are not
        assert "3 steps in a row had non-finite losses or gradients" in result["stopped"]


@pytest.mark.parametrize("ranks", HALF)
def test_an_overflow_halves_the_scale_and_a_bad_loss_leaves_it(results: Results, ranks: int) -> None:
    result = results[ranks, "fp16"][0]
    before = result["resumed_rows"][-1]["scale"]
    assert result["bad gradient"][0]["scale"] == before / 2
    assert result["bad loss"][0]["scale"] == before / 2


def test_overflow_after_overflow_ends_the_run_in_one_line_and_a_warm_down_of_the_scale_does_not(
    results: Results,
) -> None:
    for result in results[2, "fp16"]:
        found = result["overflowing"]
        # 2**16 and its halves; then, at the smallest scale, as many as the limit; the last of them ended the run
        assert found["scales"] == [2.0**power for power in range(15, -1, -1)] + [1.0] * 19
        assert found["ended"].startswith("20 steps in a row had non-finite losses or gradients (loss scale 1); lower ")
        assert "\n" not in found["ended"]
        assert [(row["skipped"], row["scale"]) for row in found["after"]] == [(False, 2.0**7)]


def test_a_full_disk_on_one_rank_ends_the_checkpoint_on_all_and_costs_nothing(results: Results) -> None:
    for result in results[2, "fp32"]:
        found = result["full"]
        assert found["said"].startswith("checkpoint of step 2 not written: rank 1: ")
        assert "the disk is full while writing" in found["said"]
        assert "\n" not in found["said"]
        assert (found["left"], found["step"]) == (["step-00000001"], 1)  # nothing half-written stays
        assert found["after"] == ["step-00000001", "step-00000003"]


def test_masters_start_from_the_unrounded_weights(results: Results) -> None:
    network = lively_network(PARAMS.vit, PARAMS.heads, PARAMS.run.seed)
    for name, value in network.named_parameters():
        assert torch.equal(results[2, "fp16"][0]["start"][name], value.detach()), name


def test_gradients_of_the_heads_are_summed_in_fp32_and_those_of_the_backbone_in_fp16(results: Results) -> None:
    found = results[2, "fp16"][0]["gradients"]
    exact = {kind: {n: torch.equal(f["reduced"][n], f["exact"][n]) for n in f["exact"]} for kind, f in found.items()}
    for kind, heads, backbone in (("heads_fp32", True, False), ("same", False, False), ("fp32", True, True)):
        for name, equal in exact[kind].items():
            assert equal == (heads if name.startswith("dino_head") else backbone), (kind, name)
            near = found[kind]["exact"][name]
            torch.testing.assert_close(
                found[kind]["reduced"][name], near, rtol=2e-3, atol=1e-3 * float(near.abs().max())
            )


def test_a_second_partition_within_pairs_of_ranks_changes_no_number(results: Results) -> None:
    result = results[4, "fp32"][0]
    assert result["hpz rows"] == result["rows"][SAVED:]
    for name, value in result["masters"].items():
        assert torch.equal(result["hpz"][name], value), name


def test_options_of_zero_reach_deepspeed_which_refuses_some_in_one_line(results: Results) -> None:
    refused = results[1, "fp32"][0]["refused"]
    # quantised gathers are CUDA code: the key arrived, and DeepSpeed looked for it
    assert "zero_quantized_weights: True): DeepSpeed refuses it on 1 ranks of cpu" in refused["zero_quantized_weights"]
    assert "zero_hpz_partitions: 2): DeepSpeed refuses it" in refused["zero_hpz_partitions"]
    assert "Extra inputs are not permitted" in refused["zero_hpz_partitions"]
    # which DeepSpeed answers with exceptions of other kinds
    assert "offload_optimizer: {'device': 'nvme'}): DeepSpeed refuses it" in refused["offload_optimizer"]
    assert "leaf_module: 3): DeepSpeed refuses it on 1 ranks of cpu: TypeError: " in refused["leaf_module"]
    assert len(refused) == 6
    assert not any("\n" in line for line in refused.values())


def test_another_stage_of_zero_is_refused_before_anything_is_made() -> None:
    with pytest.raises(ValueError, match="stage 2: training here is ZeRO-3"):
        EngineParams(zero={"stage": 2})


@pytest.mark.parametrize(("ranks", "precision"), BOTH)
def test_predicted_states_are_those_held_to_the_byte(results: Results, ranks: int, precision: str) -> None:
    predicted = states_per_rank(PARAMS, ranks, sixteen_bit=precision != "fp32")
    for result in results[ranks, precision]:
        assert result["bytes"] == predicted


def test_fp16_on_a_cpu_is_refused_in_one_line() -> None:
    with pytest.raises(VitrailError, match=r"engine\.precision: .*use fp32"):
        pick_precision("fp16", torch.device("cpu"))
    assert pick_precision("auto", torch.device("cpu")) == "fp32"
    assert pick_precision("auto", torch.device("cuda")) == "fp16"
