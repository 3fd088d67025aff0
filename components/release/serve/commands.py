"""The commands that start a server or move what it serves: explore, register, serve, promote, rollback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.command_line import Options, as_options
from components.release.use.options import ModelOption, ViewOptions

if TYPE_CHECKING:
    from components.release.serve.serving import ServeParams

PARAMS = Path("params/serve.yaml")


@as_options
class ExploreOptions(ViewOptions):
    """Options of ``explore``."""

    model: str | None = None
    """The model, as in `embed`. Without it, the map that --out has is shown."""
    images: str | None = None
    """Image, folder, .tar file, manifest, table (.parquet), or s3:// address."""
    benchmark: str | None = None
    """A name in --benchmarks, instead of --images."""
    benchmarks: Path = Path("params/benchmarks.yaml")
    """Parameter file of the labelled images."""
    label_column: str = "label"
    """Column of a table or benchmark."""
    decisions: Path | None = None
    """What dedup decided: data/dedup/decisions."""
    most: int = 50_000
    """Images on the map. Of more, evenly spread ones are taken."""
    thumbnail: int = 96
    """Pixels of a thumbnail's longer side."""
    out: Path = Path("data/map")
    """Folder of the map."""
    port: int = 5002
    """Port of the page, on 127.0.0.1."""
    no_serve: bool = False
    """Make the map, and serve no page."""


_EXPLORE = ExploreOptions()


def explore(*, options: Options[ExploreOptions] = _EXPLORE) -> None:
    """Show images on a map of their features, in the browser."""
    from components.errors import VitrailError
    from components.release.serve.explore_server import open_server
    from components.release.use.explore import MapSource, build, map_facts

    if options.model is not None:
        if (options.images is None) == (options.benchmark is None):
            raise VitrailError("explore: give --images or --benchmark, one of them")
        if options.most < 3 or options.thumbnail < 1:
            raise VitrailError("explore: --most is 3 or more, --thumbnail 1 or more")
        named = None if options.benchmark is None else (options.benchmarks, options.benchmark)
        source = MapSource(
            options.images or "", options.label_column, options.decisions, named, options.most, options.thumbnail
        )
        build(options.model, source, options.out, options.embedding(options.spec()))
    elif given := [name for name in ("images", "benchmark", "decisions") if getattr(options, name) is not None]:
        raise VitrailError(f"explore: --{given[0]} makes a new map, which needs --model; without both, --out is shown")
    facts = map_facts(options.out)
    print(f"{options.out}: a map of {facts['shown']} of {facts['rows']} images")
    if options.no_serve:
        return
    server = open_server(options.out, options.port)
    print(f"http://127.0.0.1:{server.server_address[1]}/ shows it; end with Ctrl-C", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return
    finally:
        server.server_close()


def _params(path: Path) -> ServeParams:
    from components.params import load_params
    from components.release.serve.serving import ServeParams

    return load_params(path, ServeParams) if path != PARAMS or path.is_file() else ServeParams()


def register(*, model: ModelOption, name: str, params: Path = PARAMS) -> None:
    """Put a model into MLflow's registry, as candidate.

    Args:
        name: Name of the registered model.
        params: Parameter file of the server.
    """
    from components.release.serve.registered import register as put
    from components.release.weights.load import load_model

    version = put(load_model(model), name, _params(params))
    print(f"{version.source}: registered, and the candidate of {name}")


def serve(
    *, model: ModelOption, host: str = "127.0.0.1", port: int = 5001, workers: int = 1, params: Path = PARAMS
) -> int:  # fmt: skip
    """Answer HTTP requests with features, by MLflow's server.

    Args:
        host: Address to listen on; 127.0.0.1 is this machine alone.
        port: Port to listen on.
        workers: Processes, each with the model in memory.
        params: Parameter file of the server.
    """
    from components.release.serve.server import serve as answer

    return answer(model, _params(params), host, port, workers)


def promote(
    *, name: str, scores: Path = Path("data/benchmark"), gate: Path = Path("params/gate.yaml")
) -> None:  # fmt: skip
    """Make a model's candidate its champion, if its scores pass the gate.

    Args:
        name: Name of the registered model.
        scores: Folder that the benchmark stage wrote.
        gate: What the candidate must reach.
    """
    from components.release.serve.registered import promote as move

    version = move(name, scores, gate)
    print(f"{version.source}: the champion of {name}")


def rollback(*, name: str) -> None:
    """Make the champion before this one the champion again.

    Args:
        name: Name of the registered model.
    """
    from components.release.serve.registered import rollback as move

    left, version = move(name)
    print(f"{version.source}: the champion of {name} again, in place of version {left}")
