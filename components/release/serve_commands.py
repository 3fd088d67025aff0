"""The commands that start a server or move what it serves: explore, register, serve, promote, rollback."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.release.commands import NAMED, add_image_arguments, embed_params, spec_of

if TYPE_CHECKING:
    from components.release.serving import ServeParams

PARAMS = Path("params/serve.yaml")
Subparsers = Any


def add_serve_arguments(subparsers: Subparsers) -> None:
    """``register``, ``serve``, ``promote`` and ``rollback``."""
    register = subparsers.add_parser("register", help="put a model into MLflow's registry, as candidate")
    register.add_argument("--model", required=True, help=NAMED)
    register.add_argument("--name", required=True, help="of the registered model")
    register.add_argument("--params", type=Path, default=PARAMS)
    register.set_defaults(run=_register)
    serve = subparsers.add_parser("serve", help="answer HTTP requests with features, by MLflow's server")
    serve.add_argument("--model", required=True, help=NAMED)
    serve.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    serve.add_argument("--port", type=int, default=5001)
    serve.add_argument("--workers", type=int, default=1, help="processes, each with the model in memory")
    serve.add_argument("--params", type=Path, default=PARAMS)
    serve.set_defaults(run=_serve)
    promote = subparsers.add_parser("promote", help="make a model's candidate its champion, if the gate lets it")
    promote.add_argument("--name", required=True, help="of the registered model")
    promote.add_argument("--scores", type=Path, default=Path("data/benchmark"), help="what the benchmark stage wrote")
    promote.add_argument("--gate", type=Path, default=Path("params/gate.yaml"), help="what the candidate must reach")
    promote.set_defaults(run=_promote)
    rollback = subparsers.add_parser("rollback", help="make the champion before this one the champion again")
    rollback.add_argument("--name", required=True, help="of the registered model")
    rollback.set_defaults(run=_rollback)


def add_explore_arguments(subparsers: Subparsers) -> None:
    """``explore``."""
    explore = subparsers.add_parser("explore", help="images on a map of their features, in the browser")
    explore.add_argument("--model", help=f"{NAMED}; without it, the map that --out has is shown")
    add_image_arguments(explore, required=False)
    explore.add_argument("--benchmark", help="a name in --benchmarks, in place of --images")
    explore.add_argument("--benchmarks", type=Path, default=Path("params/benchmarks.yaml"))
    explore.add_argument("--label-column", default="label", help="of a table or benchmark")
    explore.add_argument("--decisions", type=Path, help="what dedup decided: data/dedup/decisions")
    explore.add_argument("--most", type=int, default=50_000, help="images on the map; of more, evenly spread ones")
    explore.add_argument("--thumbnail", type=int, default=96, help="px of a thumbnail's longer side")
    explore.add_argument("--out", type=Path, default=Path("data/map"), help="folder of the map")
    explore.add_argument("--port", type=int, default=5002, help="on 127.0.0.1")
    explore.add_argument("--no-serve", action="store_true", help="make the map alone")
    explore.set_defaults(run=_explore, workers=0, part_rows=0, executor=None, address=None)


def _explore(arguments: argparse.Namespace) -> int:
    from components.errors import VitrailError
    from components.release.explore import Source, build
    from components.release.explore_server import open_server

    if arguments.model is not None:
        if (arguments.images is None) == (arguments.benchmark is None):
            raise VitrailError("explore: give --images or --benchmark, one of them")
        if arguments.most < 3 or arguments.thumbnail < 1:
            raise VitrailError("explore: --most is 3 or more, --thumbnail 1 or more")
        named = None if arguments.benchmark is None else (arguments.benchmarks, arguments.benchmark)
        source = Source(
            arguments.images or "", arguments.label_column, arguments.decisions, named, arguments.most,
            arguments.thumbnail,
        )  # fmt: skip
        facts = build(arguments.model, source, arguments.out, embed_params(arguments, spec_of(arguments)))
        print(f"{arguments.out}: a map of {facts['shown']} of {facts['rows']} images")
    if arguments.no_serve:
        return 0
    server = open_server(arguments.out, arguments.port)
    print(f"http://127.0.0.1:{server.server_address[1]}/ shows it; end with Ctrl-C", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0


def _params(path: Path) -> ServeParams:
    from components.params import load_params
    from components.release.serving import ServeParams

    return load_params(path, ServeParams) if path != PARAMS or path.is_file() else ServeParams()


def _register(arguments: argparse.Namespace) -> int:
    from components.release.load import load_model
    from components.release.registered import register

    params = _params(arguments.params)
    version = register(load_model(arguments.model, with_heads=False), arguments.name, params)
    print(f"{version.source}: registered, and the candidate of {arguments.name}")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from components.release.server import serve

    return serve(arguments.model, _params(arguments.params), arguments.host, arguments.port, arguments.workers)


def _promote(arguments: argparse.Namespace) -> int:
    from components.release.registered import promote

    version = promote(arguments.name, arguments.scores, arguments.gate)
    print(f"{version.source}: the champion of {arguments.name}")
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from components.release.registered import rollback

    left, version = rollback(arguments.name)
    print(f"{version.source}: the champion of {arguments.name} again, in place of version {left}")
    return 0
