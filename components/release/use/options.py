"""The options that commands on models share, and what they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from components.command_line import ExecutorOptions, as_options
from components.errors import VitrailError
from components.executor import ExecutorParams

if TYPE_CHECKING:
    from components.release.use.embed import EmbedParams
    from components.release.use.features import FeatureKind, FeatureSpec
    from components.release.use.images import Places

NAMED = (
    "a file or folder, s3://bucket/key, https://...#sha256=HEX or models:/name@alias: our exports, Meta's released "
    "files, training checkpoints, Hugging Face folders, safetensors"
)
ModelOption = Annotated[str, Parameter(help=f"The model: {NAMED}.")]


@as_options
class ViewOptions:
    """How images are read: their size, the device, and where shards are."""

    size: str | None = None
    """Side in pixels of the square that images are resized to, or native (default: the model's)."""
    crop_to_patch: bool = False
    """Cut sides down to multiples of the patch."""
    batch: int = 32
    """Images in a forward pass."""
    threads: int = 0
    """Threads that decode; 0: two, or one a core beside a GPU."""
    device: str = "auto"
    """auto, cpu, cuda (all GPUs in turn) or cuda:N."""
    curated: Path = Path("data/curate")
    """Folder with the shards of a manifest."""
    storage: Path = Path("params/storage.yaml")
    """The store of s3:// images."""
    feature_cache: Path | None = None
    """Folder of kept features, as in params/benchmark.yaml: an image goes through a model once."""

    def spec(self, kinds: tuple[FeatureKind, ...] = ("cls",)) -> FeatureSpec:
        """Which features are computed, and of which pixels."""
        from components.params import parse_params
        from components.release.use.features import FeatureSpec

        size: str | int | None = self.size
        if size is not None and size != "native":
            if not str(size).isdigit() or not int(size):
                raise VitrailError(f"--size {size}: a number of pixels, or native")
            size = int(size)
        content = {
            "kinds": kinds, "size": size, "crop": self.crop_to_patch, "batch": self.batch, "threads": self.threads,
        }  # fmt: skip
        return parse_params(content, FeatureSpec, "embed")

    def places(self) -> Places:
        """Where a manifest's shards and S3 are."""
        from components.params import load_params
        from components.release.use.images import Places
        from components.release.weights.fetch import storage_params
        from components.storage import StorageParams

        there = self.storage.is_file()
        return Places(self.curated, load_params(self.storage, StorageParams) if there else storage_params())

    def embedding(self, spec: FeatureSpec) -> EmbedParams:
        """How features are computed: in this process, as a table."""
        from components.release.use.embed import EmbedParams

        executor = ExecutorParams(kind="pool", workers=0)
        return EmbedParams(spec, self.places(), executor, self.device, kept=self.feature_cache)


@as_options
class ImagesOptions(ViewOptions):
    """Options of a command that reads images."""

    images: str
    """Image, folder, .tar file, manifest, table (.parquet), or s3:// address."""


@as_options
class EmbedOptions(ExecutorOptions, ImagesOptions):
    """Options of a command that computes features of many images."""

    model: ModelOption
    workers: int = 0
    """Processes; 0: this one."""
    part_rows: int = 0
    """Images in a part; 0: 4096, or 512 with patches."""

    def embedding(self, spec: FeatureSpec, form: Literal["parquet", "npy"] = "parquet") -> EmbedParams:
        """How features are computed."""
        from components.params import parse_params
        from components.release.use.embed import EmbedParams

        given = {"kind": self.executor or "pool", "workers": self.workers, "address": self.address}
        executor = parse_params(given, ExecutorParams, "embed")
        if self.part_rows < 0:
            raise VitrailError(f"--part-rows {self.part_rows}: 0 or more images")
        return EmbedParams(spec, self.places(), executor, self.device, form, self.part_rows, self.feature_cache)


def files_of(named: tuple[str, ...], most: int) -> list[Path]:
    """Image files: those named, or the first ``most`` of a folder."""
    from components.web.sources.kinds import IMAGE_SUFFIXES

    if len(named) == 1 and Path(named[0]).is_dir():
        inside = sorted(path for path in Path(named[0]).rglob("*") if path.name.lower().endswith(IMAGE_SUFFIXES))
        if not inside:
            raise VitrailError(f"{named[0]}: no images in this folder")
        return inside[:most]
    return [Path(each) for each in named]
