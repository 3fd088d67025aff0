"""The crawl stage's command.

python -m components.crawl run --params params/crawl.yaml --source params/site/demo.yaml --out data/crawl
python -m components.crawl retry --reasons timed-out,unreachable --params params/crawl.yaml --out data/crawl
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from components.command_line import Options, ParamsOptions, application, as_options, commands_of
from components.params import load_params
from components.pipeline import load_pipeline
from components.storage import StorageParams
from components.web.sources.forms import plain

if TYPE_CHECKING:
    from components.context import StageContext
    from components.crawl.spider import CrawlParams

app = application("crawl", "Crawl web sites, or register files that are there.", "components.crawl")
main = commands_of(app)


@as_options
class CrawlRunOptions(ParamsOptions):
    """Options of both commands."""

    out: Path
    """Folder for WARC files and the list of sources."""
    source: Annotated[
        str | None, Parameter(help=f"{plain()} (default: `source` in params/pipeline.yaml)")
    ] = None  # fmt: skip
    storage: Path = Path("params/storage.yaml")
    """The store of s3:// sources."""

    def read(self) -> tuple[CrawlParams, str, StageContext]:
        """Manners, source and context that the options name."""
        from components.context import StageContext
        from components.crawl.spider import CrawlParams

        params = load_params(self.params, CrawlParams, self.set)
        context = StageContext(load_params(self.storage, StorageParams), tracking=None, report=None)
        return params, self.source or load_pipeline().source, context


@app.command
def run(*, options: Options[CrawlRunOptions]) -> None:
    """Crawl a site, or register WARC files or images that are there."""
    from components.crawl import stage
    from components.web.sources.listing import shown

    params, source, context = options.read()
    counts = stage.run(params, stage.CrawlInputs(source), options.out, context)
    print(f"crawl: {shown(source)} -> {options.out}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))


@app.command
def retry(*, reasons: str = "timed-out,unreachable", options: Options[CrawlRunOptions]) -> None:
    """Ask again only for what a finished crawl could not get.

    Args:
        reasons: Why they were not got, as in the index, separated by commas.
    """
    from components.crawl import retry as again

    params, source, context = options.read()
    wanted = [reason.strip() for reason in reasons.split(",") if reason.strip()]
    counts = again.run(wanted, params, source, options.out, context)
    print(f"crawl retry: {options.out}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
    if counts["asked"]:
        print("next: dvc commit -f crawl makes this the stage's version; dvc repro curates it")
