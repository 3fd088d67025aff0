"""The ViT itself: packed passes, shapes, start values, what ZeRO-3 asks of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from components.errors import VitrailError
from components.learning.embed import interpolate_positions
from components.learning.vit import ARCHITECTURES, Features, VisionTransformer, ViTConfig, vit_config


def tiny(**changes: Any) -> ViTConfig:
    shape: dict[str, Any] = {"image_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "heads": 3}
    return ViTConfig(**{**shape, "registers": 2, "layerscale_init": 0.3, **changes})


def model(dtype: torch.dtype = torch.float32, **changes: Any) -> VisionTransformer:
    vit = VisionTransformer(tiny(**changes)).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=dtype) * 0.1)
    return vit


def crops(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor | None]]:
    g = torch.Generator().manual_seed(6)
    images = [torch.randn(n, 3, h, w, generator=g, dtype=dtype) for n, h, w in ((4, 32, 32), (6, 16, 16), (2, 16, 40))]
    return images, [torch.rand(4, 16, generator=g) < 0.4, None, None]


def loss_of(features: list[Features]) -> Tensor:
    return torch.stack([(part.sin() * (i + 1)).sum() for f in features for i, part in enumerate(f)]).sum()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("changes", [{}, {"ffn": "swiglu"}, {"stem": "convolutional"}])
def test_one_packed_pass_equals_separate_passes(dtype: torch.dtype, tolerance: float, changes: dict[str, Any]) -> None:
    vit = model(dtype, **changes)
    images, masks = crops(dtype)
    packed = vit(images, masks)
    loss_of(packed).backward()
    gradients = {name: p.grad.clone() for name, p in vit.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(vit.parameters()))
    vit.zero_grad()
    separate = [vit(group, mask) if mask is not None else vit(group) for group, mask in zip(images, masks, strict=True)]
    loss_of(separate).backward()
    for one, other in zip(packed, separate, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    for name, p in vit.named_parameters():
        assert p.grad is not None
        scale = float(p.grad.abs().max()) + 1
        torch.testing.assert_close(gradients[name], p.grad, atol=tolerance * scale * 10, rtol=0, msg=name)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
@pytest.mark.parametrize(("checkpointed", "short"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize("some", [True, False])
def test_chosen_tokens_and_their_gradients_equal_those_of_the_whole_pass(
    drop_path: float, checkpointed: bool, short: bool, some: bool
) -> None:
    vit = model(torch.float64, drop_path=drop_path).train()
    vit.checkpoint_blocks, vit.short_last_block = checkpointed, short
    images, masks = crops(torch.float64)
    patches = torch.tensor([0, 5, 15, 16, 40, 63]) if some else None
    vit.seed_drop_path(3)
    whole = vit(images, masks)
    expected = [part.cls for part in whole]
    if patches is not None:
        expected.append(whole[0].patches.flatten(0, 1)[patches])
    torch.stack([(part.sin() * (i + 1)).sum() for i, part in enumerate(expected)]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in vit.named_parameters() if p.grad is not None}
    vit.zero_grad()
    vit.seed_drop_path(3)
    classes, chosen = vit.chosen(images, masks, patches)
    found = classes if chosen is None else [*classes, chosen]
    torch.stack([(part.sin() * (i + 1)).sum() for i, part in enumerate(found)]).sum().backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    assert len(gradients) == len(list(vit.parameters()))
    for name, p in vit.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], atol=1e-11, rtol=1e-11, msg=name)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_rows_that_no_loss_reads_are_keys_and_values_only_in_the_last_block(drop_path: float) -> None:
    vit = model(drop_path=drop_path).train()
    images, masks = crops()
    seen: list[tuple[str, int]] = []
    for number, block in enumerate(vit.blocks):
        for name in ("attn.qkv", "attn.proj", "mlp.fc1"):
            part = block.get_submodule(name)
            part.register_forward_hook(lambda _, x, __, name=f"{number}.{name}": seen.append((name, len(x[0]))))
    vit.norm.register_forward_hook(lambda _, x, __: seen.append(("norm", len(x[0]))))
    vit.chosen(images, masks, torch.tensor([3, 17]))
    share = 1 - drop_path  # of every group's samples
    rows, read = round(share * (4 * 19 + 6 * 7 + 2 * 13)), 4 + 6 + 2 + 2
    assert dict(seen) == {
        **{f"{number}.{name}": rows for number in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1")},
        "2.attn.qkv": rows,
        "2.attn.proj": read,
        "2.mlp.fc1": read,
        "norm": read,
    }


@pytest.mark.parametrize(("ffn", "linear"), [("mlp", ["fc1", "fc2"]), ("swiglu", ["w12", "w3"])])
def test_crops_of_all_sizes_go_through_each_layer_together_and_only_attention_splits_them(
    ffn: str, linear: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = model(ffn=ffn, drop_path=0.5).train()
    images, masks = crops()
    images, masks = images[:2], masks[:2]
    calls: Counter[str] = Counter()
    for name, module in vit.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    attended: list[tuple[int, ...]] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def count(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended.append(tuple(q.shape))
        return attend(q, k, v)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    vit(images, masks)
    parts = ["norm1", "attn", "attn.qkv", "attn.proj", "ls1", "norm2", "mlp", *(f"mlp.{n}" for n in linear), "ls2"]
    blocks = [f"blocks.{i}" for i in range(3)]
    expected = ["", "embeddings", "embeddings.patch_embed", *blocks, "norm"]
    expected += [f"{block}.{part}" for block in blocks for part in parts]
    assert calls == Counter(expected)  # each once, not once a group
    # stochastic depth keeps 2 of 4 and 3 of 6 samples, of 1 + 2 + 16 and 1 + 2 + 4 tokens
    assert attended == [(2, 3, 19, 8), (3, 3, 7, 8)] * 3


@pytest.mark.parametrize("changes", [{"qkv_bias": False}, {"layerscale_init": None}])
def test_without_bias_of_qkv_or_layerscale(changes: dict[str, Any]) -> None:
    """The block by hand, in the order that the paper's figure has."""
    vit = model(torch.float64, depth=1, registers=0, **changes).eval()
    block: Any = vit.blocks[0]
    names = {name for name, _ in block.named_parameters()}
    assert ("attn.qkv.bias" in names) == ("qkv_bias" not in changes)
    assert ("ls1.gamma" in names) == ("layerscale_init" not in changes)
    images = crops(torch.float64)[0][0]
    x = vit.embeddings([images], [None]).view(4, 17, 24)

    def norm(layer: Any, t: Tensor) -> Tensor:
        centred = t - t.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias

    def linear(layer: Any, t: Tensor) -> Tensor:
        return t @ layer.weight.T + (0 if layer.bias is None else layer.bias)

    def scale(layer: Any) -> Any:
        return getattr(layer, "gamma", 1.0)

    q, k, v = linear(block.attn.qkv, norm(block.norm1, x)).view(4, 17, 3, 3, 8).permute(2, 0, 3, 1, 4)
    mixed = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1) @ v
    x = x + scale(block.ls1) * linear(block.attn.proj, mixed.transpose(1, 2).reshape(4, 17, 24))
    inner = linear(block.mlp.fc1, norm(block.norm2, x))
    x = x + scale(block.ls2) * linear(block.mlp.fc2, inner * 0.5 * (1 + torch.erf(inner / 2**0.5)))
    torch.testing.assert_close(vit(images).patches, norm(vit.norm, x)[:, 1:])


@pytest.mark.parametrize("changes", [{"qkv_bias": False}, {"layerscale_init": None}])
def test_they_too_skip_samples_and_learn(changes: dict[str, Any]) -> None:
    vit = model(torch.float64, drop_path=0.5, **changes).train()
    images, masks = crops(torch.float64)
    found = vit(images, masks)
    loss_of(found).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in vit.parameters())
    block: Any = vit.blocks[0]
    assert sum("ls" in name for name, _ in block.named_parameters()) == (0 if "layerscale_init" in changes else 2)


def test_shapes_and_order_of_features() -> None:
    images, masks = crops()
    found = model()(images, masks)
    assert [tuple(f.patches.shape) for f in found] == [(4, 16, 24), (6, 4, 24), (2, 10, 24)]
    assert [tuple(f.cls.shape) for f in found] == [(4, 24), (6, 24), (2, 24)]
    assert all(f.registers.shape[1] == 2 for f in found)
    bare = model(registers=0)(images[0])
    assert bare.registers.shape == (4, 0, 24)


def test_a_sample_does_not_depend_on_its_neighbours_in_the_pack() -> None:
    vit = model(torch.float64).eval()
    images, masks = crops(torch.float64)
    before = vit(images, masks)
    images[1] = images[1].clone()
    images[1][3] += 1
    after = vit(images, masks)
    changed = (after[1].cls - before[1].cls).abs().amax(1) > 1e-9
    assert changed.tolist() == [False, False, False, True, False, False]
    torch.testing.assert_close(after[0].patches, before[0].patches)
    torch.testing.assert_close(after[2].patches, before[2].patches)


def test_hidden_patches_are_replaced_before_positions_are_added() -> None:
    vit = model(torch.float64).eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 5] = True
    other = images.clone()
    other[:, :, 8:16, 8:16] = 7.0  # the pixels of patch 5 alone
    one, two = vit(images, mask), vit(other, mask)
    torch.testing.assert_close(one.cls, two.cls)  # what is hidden cannot be seen
    moved = torch.zeros_like(mask)
    moved[:, 6] = True
    tokens = [vit.embeddings([images], [m]).view(2, 19, 24) for m in (mask, moved)]
    positions = vit.embeddings.pos_embed[0, 1:]
    difference = tokens[0][:, 3 + 5] - tokens[1][:, 3 + 6]
    torch.testing.assert_close(difference, (positions[5] - positions[6]).expand(2, -1))


def test_registers_carry_no_position() -> None:
    vit = model()
    tokens = vit.embeddings([torch.randn(2, 3, 32, 32)], [None]).view(2, 19, 24)
    assert vit.embeddings.register_tokens is not None
    torch.testing.assert_close(tokens[:, 1:3], vit.embeddings.register_tokens.expand(2, -1, -1))


def test_patch_embedding_is_a_convolution() -> None:
    vit = model(torch.float64)
    images, _ = crops(torch.float64)
    embed = vit.embeddings.patch_embed
    expected = [torch.conv2d(i, embed.weight, embed.bias, stride=8).flatten(2).transpose(1, 2) for i in images]
    torch.testing.assert_close(embed(images), torch.cat([e.reshape(-1, 24) for e in expected]))


def cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    x = np.abs(x)
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def weights_of(new: int, old: int, factor: float) -> np.ndarray:
    """Matrix ``[new, old]`` of bicubic resampling by ``factor``, edges repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) / factor - 0.5
        for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            matrix[i, min(max(tap, 0), old - 1)] += cubic(np.array(centre - tap))
    return matrix


@pytest.mark.parametrize("grid", [(3, 3), (9, 9), (4, 11)])
@pytest.mark.parametrize("how", ["offset", "plain"])
def test_positions_are_resampled_by_the_written_formula(grid: tuple[int, int], how: Any) -> None:
    table = torch.randn(1, 36, 5, generator=torch.Generator().manual_seed(0))
    extra = 0.1 if how == "offset" else 0.0
    rows, columns = (weights_of(n, 6, (n + extra) / 6) for n in grid)
    expected = np.einsum("ri,cj,ijd->rcd", rows, columns, table[0].view(6, 6, 5).numpy()).reshape(-1, 5)
    np.testing.assert_allclose(interpolate_positions(table, grid, how)[0].numpy(), expected, atol=2e-5)


def test_the_two_released_ways_differ_and_both_leave_the_own_grid_alone() -> None:
    table = torch.randn(1, 36, 5, generator=torch.Generator().manual_seed(0))
    offset, size = (interpolate_positions(table, (9, 4), how) for how in ("offset", "size"))
    assert offset.shape == size.shape == (1, 36, 5)  # as many patches, another grid: still resampled
    assert not torch.allclose(offset, size, atol=1e-2)
    assert not torch.allclose(offset, table, atol=1e-2)
    assert interpolate_positions(table, (6, 6), "offset") is table


@pytest.mark.parametrize(
    ("name", "patch", "changes", "millions"),
    [
        ("vits", 14, {}, 22.06),
        ("vitb", 14, {}, 86.58),
        ("vitl", 14, {}, 304.37),
        ("vitl", 14, {"ffn": "swiglu"}, 304.79),
        ("vitg", 14, {}, 1136.48),  # released with SwiGLU alone
    ],
)
def test_named_architectures_have_the_released_sizes(name: str, patch: int, changes: Any, millions: float) -> None:
    with torch.device("meta"):
        parts = _on_meta(vit_config(name, 518, patch, **changes))
    total = sum(p.numel() for p in parts.parameters())
    assert total / 1e6 == pytest.approx(millions, abs=0.006)


def _on_meta(config: ViTConfig) -> VisionTransformer:
    class Bare(VisionTransformer):
        def init_weights(self, generator: torch.Generator) -> None:
            """Nothing to fill on the meta device."""

    return Bare(config)


def test_start_values() -> None:
    vit = VisionTransformer(tiny(embed_dim=192, layerscale_init=1e-5))
    state = vit.state_dict()
    assert state["blocks.1.attn.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert state["embeddings.pos_embed"].std().item() == pytest.approx(0.02, rel=0.1)
    assert 0 < state["embeddings.cls_token"].abs().max() < 1e-5
    assert 0 < state["embeddings.register_tokens"].abs().max() < 1e-5
    assert state["embeddings.mask_token"].eq(0).all()
    assert all(v.eq(0).all() for n, v in state.items() if n.endswith("bias") and "patch_embed" not in n)
    assert state["blocks.2.ls2.gamma"].eq(1e-5).all()
    bound = (3 * 8 * 8) ** -0.5  # a convolution's own start: uniform
    patch = state["embeddings.patch_embed.weight"]
    assert 0.98 * bound < patch.abs().max() <= bound
    assert patch.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    again, other = VisionTransformer(vit.config), VisionTransformer(vit.config)
    other.init_weights(torch.Generator().manual_seed(9))
    assert torch.equal(again.state_dict()["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])
    assert not torch.equal(other.state_dict()["blocks.0.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])


def test_running_a_model_leaves_the_global_generator_alone() -> None:
    vit = model(drop_path=0.5).train()
    before = torch.get_rng_state()
    vit.init_weights(torch.Generator().manual_seed(1))
    vit(torch.zeros(4, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stem", ["patch", "convolutional"])
def test_every_parameter_is_read_in_its_own_modules_forward_alone(stem: str) -> None:
    """As ZeRO-3 has it: a parameter is empty except while the module that owns it runs."""
    vit = model(torch.float64, stem=stem).eval()
    images, masks = crops(torch.float64)
    expected = vit(images, masks)
    for module in vit.modules():
        own = dict(module.named_parameters(recurse=False))
        if not own:
            continue
        full = {name: p.data for name, p in own.items()}

        def gather(_m: Any, _a: Any, own: Any = own, full: Any = full) -> None:
            for name, p in own.items():
                p.data = full[name]

        def release(_m: Any, _a: Any, _o: Any, own: Any = own) -> None:
            for p in own.values():
                p.data = torch.empty(0, dtype=torch.float64)

        module.register_forward_pre_hook(gather)
        module.register_forward_hook(release)
        release(None, None, None)
    with torch.no_grad():
        found = vit(images, masks)
        deep = vit.intermediate(images[0], 1)[0]
    torch.testing.assert_close(found[0].patches, expected[0].patches)
    torch.testing.assert_close(found[2].cls, expected[2].cls)
    assert deep.cls.shape == (4, 24)


def test_block_checkpointing_changes_nothing() -> None:
    images, masks = crops(torch.float64)
    gradients = []
    for again in (False, True):
        vit = model(torch.float64, drop_path=0.5).train()
        vit.seed_drop_path(4)
        vit.checkpoint_blocks = again
        loss_of(vit(images, masks)).backward()
        gradients.append([p.grad for p in vit.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_bad_input_is_named() -> None:
    vit = model()
    with pytest.raises(
        VitrailError, match=r"image of 30 x 32 px: sides must be multiples of the patch of 8 px.*24 x 32"
    ):
        vit(torch.zeros(1, 3, 30, 32))
    with pytest.raises(VitrailError, match=r"mask of shape \(1, 9\): the crops need \(1, 16\)"):
        vit(torch.zeros(1, 3, 32, 32), torch.zeros(1, 9, dtype=torch.bool))
    with pytest.raises(VitrailError, match="2 masks for 1 groups"):
        vit([torch.zeros(1, 3, 32, 32)], [None, None])
    with pytest.raises(VitrailError, match="no architecture 'vitm'; there are vitt, vits"):
        vit_config("vitm", 224, 14)
    with pytest.raises(ValueError, match="no multiple of heads 5"):
        tiny(heads=5)
    with pytest.raises(ValueError, match="image_size 30 is no multiple of patch_size 8"):
        tiny(image_size=30)
    assert list(ARCHITECTURES) == ["vitt", "vits", "vitb", "vitl", "vitg"]


def relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """How far two lists of tensors are apart, of the second's size."""
    a, b = (torch.cat([t.detach().float().flatten() for t in part]) for part in (ours, theirs))
    return float((a - b).norm() / b.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu_in_16_bits_packed_and_separate_passes_agree_with_fp32(dtype: torch.dtype, ffn: str) -> None:
    """Kernels differ with the shapes; both ways are within a few roundings of the exact result."""
    exact = model(torch.float64, ffn=ffn)
    images, masks = crops(torch.float64)
    expected = exact(images, masks)
    loss_of(expected).backward()
    vit = model(torch.float64, ffn=ffn).to("cuda", dtype)
    there = [i.to("cuda", dtype) for i in images]
    hidden = [None if m is None else m.to("cuda") for m in masks]
    for packed in (True, False):
        vit.zero_grad()
        found = vit(there, hidden) if packed else [vit([i], [m])[0] for i, m in zip(there, hidden, strict=True)]
        loss_of([Features(*(part.float() for part in f)) for f in found]).backward()
        rounding = torch.finfo(dtype).eps
        flat = [[part.cpu() for f in features for part in f] for features in (found, expected)]
        assert relative(*flat) < 5 * rounding
        gradients = [[p.grad.cpu() for p in m.parameters() if p.grad is not None] for m in (vit, exact)]
        assert len(gradients[0]) == len(gradients[1]) == len(list(vit.parameters()))
        assert relative(*gradients) < 20 * rounding


@pytest.mark.gpu
def test_on_a_gpu_stochastic_depth_keeps_the_samples_that_it_keeps_on_a_cpu() -> None:
    images, masks = crops()
    found = []
    for device in ("cpu", "cuda"):
        vit = model(drop_path=0.4).to(device).train()
        vit.seed_drop_path(3)
        given = [i.to(device) for i in images]
        features = vit(given, [None if m is None else m.to(device) for m in masks])
        loss_of(features).backward()
        gradients = [p.grad.cpu() for p in vit.parameters() if p.grad is not None]
        found.append([part.cpu() for f in features for part in f] + gradients)
    assert relative(found[1], found[0]) < 1e-4
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
