"""Where a run keeps what a later one can take up, each thing under a fingerprint of what it depends on and no more.

    .NAME.work/descriptors-F/   weights, thumbnails, descriptors.npy: of the pool, the descriptor and the views
        index/                  of the descriptors and `neighbours`; it says itself what it is an index of
        edges-F/                of `graph.k`, the lowest threshold and `neighbours`
    .NAME.work/retrieval-F/     the same of `retrieval.descriptor`

So after a run that failed, another threshold finds descriptors and edges there. Thresholds and everything decided from
them cost seconds and are never kept. Of each kind only the folder in use is kept; a run that succeeds removes them all.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path

from components.descriptors.kinds import DescriptorParams, OwnDescriptorParams, TrainedParams
from components.descriptors.sscd import SscdParams
from components.descriptors.views import Views
from components.descriptors.weights import read_weights
from components.params import fingerprint
from components.plugins import code_digests
from components.storage import StorageParams

FORMAT = 6  # of what is kept, and of the decoding behind it; a change makes old files stale


def scratch_folder(parent: Path, kind: str, digest: str) -> Path:
    """``parent/kind-digest``, made; other folders of that kind there are removed."""
    folder = parent / f"{kind}-{digest[:16]}"
    for other in parent.glob(f"{kind}-*"):
        if other != folder:
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def described_digest(
    params: DescriptorParams,
    views: Views,
    chunk: int,
    images: str,
    storage: StorageParams,
) -> str:
    """What descriptors depend on: their parameters, the bytes of the weights that these name, and the pool's images.

    Args:
        params: of the descriptor; a file that they name counts by its bytes, for it may be replaced under its name.
        views: that are described.
        chunk: images a unit of work, which the files are laid out by.
        images: digest of key and content hash of every image, in order.
        storage: where weights on S3 are.
    """
    weights = None
    if isinstance(params, SscdParams):
        cache = Path(params.cache)
        weights = params.sha256 or _sha256(read_weights(params.path, None, cache, storage, "descriptor.path"))
    elif isinstance(params, OwnDescriptorParams):
        weights = code_digests([params.call])[0]
    elif isinstance(params, TrainedParams) and params.weights and Path(params.weights).is_file():
        weights = _sha256(Path(params.weights).read_bytes())  # a missing file is an error where it is read for use
    return fingerprint(params.model_dump(mode="json"), asdict(views), [chunk, FORMAT, weights], images)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
