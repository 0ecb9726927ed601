"""The command line: parse, call, print."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from nowcast import __version__
from nowcast.clusters import THREADS
from nowcast.decisions import Decisions, Summary

if TYPE_CHECKING:
    from nowcast.config import Config
    from nowcast.data.archive import IngestReport
    from nowcast.nowcasters.neural import NeuralNowcaster
    from nowcast.tracking import Tracking

FAILURE, USAGE = 1, 2  # exit status
DEFAULT_WORK = Path("nowcast-work")
MOST_MINUTES = 14_400  # of a lead time: ten days

app = App(
    name="nowcast",
    version=__version__,
    help="Precipitation nowcasting from radar file to served, verified forecast.",
    help_format="plaintext",
    result_action="return_value",
)

Work = Annotated[
    Path,
    Parameter(env_var="NOWCAST_WORK", help="Folder of runs, models and caches."),
]
Settings = Annotated[
    list[str] | None,
    Parameter(
        name="--set", help="A setting instead of the file's, as section.field=value.", negative=()
    ),
]
Dask = Annotated[
    str,
    Parameter(help="Where Dask computes: threads, local (a cluster here), or tcp://HOST:PORT."),
]
Sources = Annotated[
    list[str] | None,
    Parameter(
        negative=(),
        consume_multiple=True,
        help="Archives, NetCDF/Zarr paths or radar files instead of the settings' "
        "data.observations; several grids are put on one canvas.",
    ),
]
Source = Annotated[str, Parameter(help="Which source of an archive.")]
Start = Annotated[
    str,
    Parameter(
        name="--from",
        help="Nowcaster whose weights the training goes on from, on data of one's own: its name, "
        "folder or model. Its network, scale and window count instead of the settings', but for "
        "the number of lead frames: more, which a lagrangian learns too, or fewer.",
    ),
]
Decided = Annotated[Decisions, Parameter(name="*")]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]


@app.meta.default
def launcher(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative=())] = False,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False,
) -> Any:
    """Run a command.

    Parameters
    ----------
    verbose
        Say more, and show the traceback of an error.
    quiet
        Say nothing but results and errors.
    """
    _STATE.update(verbose=verbose, quiet=quiet)
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(format="nowcast: %(levelname)s: %(message)s", stream=sys.stderr)
    logging.getLogger("nowcast").setLevel(level)
    return app(tokens, exit_on_error=False, print_error=False)


@app.command
def demo(*, work: Work = DEFAULT_WORK, set_: Settings = None) -> None:
    """Show the whole line on synthetic rain: observe, train, verify, promote, serve, issue.

    Example: nowcast demo

    Parameters
    ----------
    work
        Folder of everything that it makes.
    """
    from nowcast.config import Config
    from nowcast.demo import demonstrate
    from nowcast.tables import table

    config = Config().replace(set_ or [])
    made = demonstrate(config, _tracking(work), say=_say, verbose=_bar())
    print(table(made.scores))
    print(f"\nchampion: {made.decision.reason}")
    if not made.decision.promoted:
        print(f"no candidate won, so the best one was served by its version: {made.served}")
    print("\nfiles:")
    for path in (*made.files, made.scores_file, made.report):
        print(f"  {path}")
    print(f"\nthe demo took {made.seconds:.0f} s; open the MLflow UI with:")
    print(f"  {_ui(_tracking(work))}")


@app.command
def ingest(
    files: list[str],
    /,
    *,
    archive: Path,
    reader: str = "",
    contracts: Path | None = None,
    watch: bool = False,
    every_seconds: float = 10.0,
    dask: Dask = THREADS,
    as_json: Json = False,
) -> int:
    """Take radar files into an archive; bad ones go to its quarantine, the rest go on.

    Example: nowcast ingest "radar/*.h5" --archive archive

    Parameters
    ----------
    files
        Files, patterns or folders.
    archive
        Folder, made if missing.
    reader
        Name of the reader; by default found by the content of each file.
    contracts
        TOML file of what is known of further sources; see docs/readers.md.
    watch
        Follow one folder into which a feed writes, until interrupted.
    every_seconds
        Between two looks at a watched folder.
    """
    from nowcast.clusters import computing
    from nowcast.data import archive as archives

    if watch and (len(files) != 1 or not Path(files[0]).is_dir()):
        raise ValueError(f"--watch follows one folder; received {', '.join(files)}")
    judged: dict[str, Any] = {"reader": reader, "contracts": contracts}
    with computing(dask, say=_say):
        if watch:
            with contextlib.suppress(KeyboardInterrupt):
                for report in archives.watch(
                    files[0], archive, every_seconds=every_seconds, **judged
                ):
                    if report != archives.IngestReport():
                        _tell(report, as_json=as_json)
            return 0
        with _progress("ingest") as progress:
            report = archives.ingest(files, archive, progress=progress, **judged)
    _tell(report, as_json=as_json)
    return FAILURE if report.refused else 0


def _tell(report: "IngestReport", *, as_json: bool) -> None:
    refused = [{"file": str(path), "reason": reason} for path, reason in report.refused]
    skipped = [{"file": str(path), "what": what} for path, what in report.skipped]
    if as_json:
        counts = {"added": report.added, "already_there": report.already_there}
        _json({**counts, "refused": refused, "skipped": skipped})
    else:
        print(f"{report.added} frames added, {report.already_there} already there, "
              f"{len(refused)} files refused", flush=True)  # fmt: skip
    for one in skipped:
        _say(f"nowcast: skipped {one['file']}: {one['what']}")
    for one in refused:
        print(f"nowcast: refused {one['file']}: {one['reason']}", file=sys.stderr)


@app.command
def fsck(archive: Path, /, *, dask: Dask = THREADS, as_json: Json = False) -> int:
    """Check every frame of an archive against its hash, and make the index anew.

    Nothing is deleted. Ingest the files of damaged or lost frames again to replace them. Exits
    with 1 if something is damaged or gone.

    Example: nowcast fsck archive

    Parameters
    ----------
    archive
        Folder.
    """
    from dataclasses import asdict

    from nowcast.clusters import computing
    from nowcast.data.archive import fsck as check

    with computing(dask, say=_say), _progress("fsck") as progress:
        found = check(archive, progress=progress)
    if as_json:
        _json(asdict(found))
    else:
        print(f"{found.frames} frames whole ({found.restored} new in the index), "
              f"{len(found.damaged)} damaged, {len(found.gone)} gone")  # fmt: skip
    for path, reason in found.damaged:
        print(f"nowcast: damaged {path}: {reason}", file=sys.stderr)
    for path in found.gone:
        print(f"nowcast: gone {path}", file=sys.stderr)
    return FAILURE if found.damaged or found.gone else 0


@app.command
def prepare(
    config: Path,
    /,
    *,
    set_: Settings = None,
    observations: Sources = None,
    source: Source = "",
    dask: Dask = THREADS,
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> None:
    """Write the training cache of a settings file, which `train` would otherwise do.

    Example: nowcast prepare configs/knmi.toml --observations archive

    Parameters
    ----------
    config
        TOML file of settings.
    """
    from nowcast import experiments
    from nowcast import training as trainings
    from nowcast.clusters import computing

    settings = _config(config, set_)
    with _progress("prepare") as progress, computing(dask, say=_say, progress=progress):
        observed = experiments.observations(settings, observations or "", source=source)
        cache = trainings.prepare(settings, observed, work=work).cache
    if as_json:
        _json(cache.summary())
        return
    for name, value in cache.summary().items():
        print(f"{name:20} {value}")


@app.command
def train(
    config: Path,
    /,
    *,
    set_: Settings = None,
    observations: Sources = None,
    source: Source = "",
    start: Start = "",
    dask: Dask = THREADS,
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> None:
    """Train a network, log everything to MLflow, and register the nowcaster.

    Example: nowcast train configs/synthetic.toml --set training.epochs=3

    Parameters
    ----------
    config
        TOML file of settings.
    """
    from nowcast import experiments
    from nowcast import training as trainings
    from nowcast.clusters import computing

    tracking = _tracking(work)
    settings, before = _beginning(config, set_, start, tracking)
    with computing(dask, say=_say):
        observed = experiments.observations(settings, observations or "", source=source)
        trained = trainings.train(
            settings,
            observed,
            tracking=tracking,
            start=before,
            verbose=0 if as_json else _bar(),
        )
    made = {"uri": trained.uri, "run_id": trained.run_id, "folder": str(trained.folder)}
    if as_json:
        _json(made)
        return
    print(f"trained {trained.uri or trained.folder} (run {trained.run_id})")
    print(f"saved in {trained.folder}")


@app.command
def study(
    file: Path,
    /,
    *,
    set_: Settings = None,
    observations: Sources = None,
    source: Source = "",
    dask: Dask = THREADS,
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> int:
    """Train and score runs that differ in one thing each, at an equal budget; see docs/studies.md.

    The same command goes on with a study that was killed, and does no run twice. Exits with 1 if a
    run failed.

    Example: nowcast study losses.toml --observations train.nc

    Parameters
    ----------
    file
        TOML file of the study.
    """
    from nowcast import experiments, studies
    from nowcast.clusters import computing

    opened = studies.open_study(file, set_)
    tracking = _tracking(work)
    with computing(dask, say=_say):
        observed = experiments.observations(opened.reference, observations or "", source=source)
        results = studies.run(
            opened, observed, tracking=tracking, say=_say, verbose=0 if as_json else _bar()
        )
    _json(studies.as_json(results)) if as_json else print(studies.table(results))
    return FAILURE if results.failed else 0


@app.command
def verify(
    *,
    nowcaster: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)] = None,
    observations: str = "",
    source: Source = "",
    period: str = "",
    split: str = "",
    config: Path | None = None,
    set_: Settings = None,
    thresholds: Annotated[list[float] | None, Parameter(negative=(), consume_multiple=True)] = None,
    lead_times: Annotated[list[int] | None, Parameter(negative=(), consume_multiple=True)] = None,
    points: Path | None = None,
    areas: Path | None = None,
    accumulate: Annotated[bool, Parameter(negative=())] = False,
    members: int | None = None,
    field: Summary | None = None,
    out: Path | None = None,
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> None:
    """Score nowcasters or predictors on identical cases, beside baselines, and write a report.

    Example: nowcast verify --nowcaster models:/nowcast@champion --config configs/synthetic.toml
    --split test

    Parameters
    ----------
    nowcaster
        Names, folders or models of the registry; unet=models:/nowcast/1 calls one unet.
    observations
        Archive, NetCDF/Zarr path or radar files instead of the settings' data.observations.
    period
        Only cases in this period, as START/END in UTC.
    split
        Only cases in this block of the settings: train, validation or test; several with + between.
    config
        TOML file of settings.
    thresholds
        In the variable's units, instead of the settings'.
    lead_times
        In minutes, instead of every step of the settings' window.
    points
        Score what is at the points of a CSV file.
    areas
        Score the means over the areas of a GeoJSON file.
    accumulate
        Score the rain amount since the base time; thresholds are in mm then.
    members
        Also score each network that gives probabilities with so many members drawn from them:
        their spread and ranks, and amounts, which probabilities say nothing of.
    field
        Also score each network that gives probabilities with their mean or median as its field.
    out
        File for the scores (netCDF); the report (HTML) and its figures go beside it.
    """
    from nowcast import experiments
    from nowcast.tables import plain, table
    from nowcast.verification import save_scores

    _check_scores_file(out)
    settings = _config(config, set_)
    tracking = _tracking(work)
    leads = _minutes(lead_times)
    observed = experiments.observations(settings, observations, source=source)
    compared = experiments.comparables(
        settings, nowcaster or [], tracking, members=members, summary=field
    )
    with tracking.run(settings.experiment, "verification") as run:
        with _progress("verify") as progress:
            scores = experiments.compare(
                settings,
                compared,
                observed,
                block=experiments.block(settings, observed, period=period, split=split),
                split=split,
                lead_times=leads,
                thresholds=tuple(thresholds or ()),
                view=experiments.view(observed, points, areas, accumulate=accumulate),
                progress=progress,
            )
        run.scores(scores)
        report = None
        if "lead_time" in scores.dims:  # scores of labels are of no lead time
            report = out.with_suffix(".html") if out else run.folder / "report.html"
            run.report(experiments.report(scores, compared, observed, path=report))
    if out:
        save_scores(scores, out)
    if as_json:
        _json(plain(scores))
        return
    print(table(scores))
    if report:
        print(f"\nreport: {report}")


@app.command
def compare(
    *runs: str,
    out: Path | None = None,
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> None:
    """Put the scores of several verifications in one table, if they have the same protocol.

    Refused, with the name of each field that differs, where data, split, cases, thresholds or
    anything else that scores depend on is not the same.

    Example: nowcast compare 0f31c2d8a1b24c0c9d1f4f4f2f0c9a11 out/scores.nc --out compared.nc

    Parameters
    ----------
    runs
        MLflow runs of verifications, or files of scores.
    out
        File for the scores (netCDF); the report (HTML) and its figures go beside it.
    """
    from nowcast.report import write_report
    from nowcast.tables import plain, table
    from nowcast.tracking import open_scores
    from nowcast.verification import combine, save_scores

    _check_scores_file(out)
    tracking = _tracking(work)
    scores = combine({run: open_scores(run, tracking) for run in runs})
    if out:
        save_scores(scores, out)
        if "lead_time" in scores.dims:  # scores of labels are of no lead time
            write_report(scores, out.with_suffix(".html"))
    if as_json:
        _json(plain(scores))
        return
    print(table(scores))


reproduce = App(
    name="reproduce",
    help="Make an experiment of the literature again, beside what was published.",
    help_format="plaintext",
)
app.command(reproduce)


@reproduce.command(name="moving-mnist")
def moving_mnist(
    *,
    images: Path,
    network: str = "",
    sequences: int = 10_000,
    epochs: int = 0,
    config: Path | None = None,
    set_: Settings = None,
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> None:
    """Forecast moving digits by the protocol of the ConvLSTM paper (Shi et al. 2015).

    Prints cross-entropy, MSE, SSIM, parameters and time on sequences that were never seen, beside
    persistence and the published figures. The same command again goes on after a kill.

    Example: nowcast reproduce moving-mnist --images mnist --sequences 200 --epochs 2

    Parameters
    ----------
    images
        MNIST's train-images-idx3-ubyte.gz, or the folder in which it lies.
    network
        Instead of convlstm, with the paper's settings if it is of the paper.
    sequences
        To train on; a fifth as many to validate and three tenths to test on.
    epochs
        At most, instead of the settings'.
    config
        TOML file of settings instead of the paper's.
    """
    from dataclasses import asdict

    from nowcast import reproductions
    from nowcast.data.moving_mnist import DIGITS, read_digits

    settings = reproductions.protocol(network or "convlstm")
    if config:
        network_of = {"network": settings.network} if network else {}
        settings = _config(config, None).model_copy(update=network_of)
    changes = [f"training.epochs={epochs}"] if epochs else []
    made = reproductions.reproduce_moving_mnist(
        settings.replace([*changes, *(set_ or [])]),
        read_digits(images)[:DIGITS],
        sequences=sequences,
        tracking=_tracking(work),
        verbose=0 if as_json else _bar(),
    )
    if as_json:
        _json(asdict(made))
        return
    print(reproductions.table(made))
    print(f"\nrun {made.run_id}, saved in {made.folder}")


@reproduce.command(name="cnn-lstm-tutorial")
def cnn_lstm_tutorial(
    *,
    config: Path | None = None,
    set_: Settings = None,
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> None:
    """Tell to which side a line crosses frames of 10 x 10 pixels, by the textbook's CNN LSTM.

    Prints the network, and its accuracy on sequences that were never seen beside always saying the
    most frequent side.

    Example: nowcast reproduce cnn-lstm-tutorial

    Parameters
    ----------
    config
        TOML file of settings instead of the tutorial's.
    """
    from dataclasses import asdict

    from nowcast import reproductions

    settings = _config(config, None) if config else reproductions.tutorial()
    made = reproductions.reproduce_tutorial(
        settings.replace(set_ or []), tracking=_tracking(work), verbose=0 if as_json else _bar()
    )
    if as_json:
        _json(asdict(made))
        return
    print(made.summary)
    print(f"trained on {made.sequences['train']} sequences in {made.seconds:.0f} s; "
          f"of {made.sequences['test']} others {made.accuracy:.1%} told right, "
          f"{made.most_frequent:.1%} by always saying the most frequent side")  # fmt: skip
    print(f"run {made.run_id}, saved in {made.folder}")


@app.command
def calibrate(
    *,
    nowcaster: str,
    out: Path,
    observations: str = "",
    source: Source = "",
    period: str = "",
    split: str = "",
    config: Path | None = None,
    set_: Settings = None,
    decisions: Decided = Decisions(),
    views: Literal[1, 4, 8] | None = None,
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> None:
    """Make a network's probabilities reliable, and fit from which of them on an event is forecast.

    Of a nowcaster with the head exceedance. Give weather that it was not trained on and is not
    judged by, of several seasons if there are: what holds on the cases given need not hold on
    others.

    Example: nowcast calibrate --nowcaster models:/nowcast/1 --config configs/taasrad19.toml
    --split validation --out calibrated

    Parameters
    ----------
    nowcaster
        Folder or model of the registry.
    out
        Folder of the calibrated nowcaster, replaced if there is one.
    observations
        Archive, NetCDF/Zarr path or radar files instead of the settings' data.observations.
    period
        Only cases in this period, as START/END in UTC.
    split
        Only cases in this block of the settings: train, validation or test; several with + between.
    config
        TOML file of settings.
    views
        The network is asked by so many views of the frames, and the mean is issued: 1, 4 (flips) or
        8 (and quarter turns). By default as the nowcaster is.
    """
    from nowcast import experiments
    from nowcast.nowcasters.saved import check_replaceable

    check_replaceable(out)
    settings = _config(config, set_)
    observed = experiments.observations(settings, observations, source=source)
    block = experiments.block(settings, observed, period=period, split=split)
    made = experiments.calibrated(
        settings,
        nowcaster,
        observed,
        _tracking(work),
        block=block,
        decisions=decisions,
        views=views,
    )
    made.save(out)
    _json({"folder": str(out)}) if as_json else print(out)


@app.command
def retrain(
    config: Path,
    /,
    *,
    out: Path,
    set_: Settings = None,
    observations: Sources = None,
    source: Source = "",
    start: Start = "",
    split: str = "validation+test",
    decisions: Decided = Decisions(),
    dask: Dask = THREADS,
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> None:
    """Train, calibrate on what was not trained on, and save: as the shipped nowcasters were made.

    Killed at any time, the same command goes on.

    Example: nowcast retrain configs/lagrangian-taasrad19.toml --observations train.nc --out mine

    Parameters
    ----------
    config
        TOML file of settings, with the head exceedance.
    out
        Folder of the nowcaster, replaced if there is one.
    split
        Blocks of the settings that are calibrated on, with + between.
    """
    from nowcast import experiments
    from nowcast import retraining as retrainings
    from nowcast.clusters import computing
    from nowcast.nowcasters.saved import check_replaceable

    check_replaceable(out)
    tracking = _tracking(work)
    settings, before = _beginning(config, set_, start, tracking)
    with computing(dask, say=_say):
        observed = experiments.observations(settings, observations or "", source=source)
        made = retrainings.retrain(
            settings,
            observed,
            tracking=tracking,
            out=out,
            split=split,
            decisions=decisions,
            start=before,
            verbose=0 if as_json else _bar(),
        )
    _json({"folder": str(made.folder), "trained": str(made.trained)}) if as_json else print(out)


@app.command
def promote(
    *,
    config: Path | None = None,
    set_: Settings = None,
    candidate: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)] = None,
    observations: str = "",
    source: Source = "",
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> int:
    """Make the best trained nowcaster the champion, if it beats every baseline of the settings.

    All candidates are verified on the settings' test block, and so is the champion so far, which
    must be beaten too. When none wins, the alias stays where it is, the command says what the best
    one lost by, and exits with 1.

    Example: nowcast promote --config configs/synthetic.toml

    Parameters
    ----------
    config
        TOML file of settings.
    candidate
        Models such as models:/nowcast/3; by default every version in the registry.
    observations
        Archive, NetCDF/Zarr path or radar files instead of the settings' data.observations.
    """
    from dataclasses import asdict

    from nowcast import experiments
    from nowcast import tracking as registry

    settings = _config(config, set_)
    registry.check_lead_times(
        settings.window.lead_times, first_lead_minutes=settings.promotion.first_lead_minutes
    )
    tracking = _tracking(work)
    name = settings.promotion.model_name
    candidates = [registry.resolve(one, tracking) for one in candidate or ()]
    candidates = candidates or registry.versions(name, tracking)
    if not candidates:
        raise registry.TrackingError(
            f"the registry has no version of {name!r}; train one with `nowcast train`"
        )
    registry.check_candidates(candidates, model_name=name)
    champion = registry.champion(name, tracking)
    defender = "" if champion in candidates else champion
    observed = experiments.observations(settings, observations, source=source)
    known = [*candidates, defender] if defender else candidates
    compared = experiments.nowcasters(settings, known, tracking)
    block = experiments.block(settings, observed, split="test")
    with tracking.run(settings.experiment, "promotion") as run:
        with _progress("verify") as progress:
            scores = experiments.compare(
                settings,
                compared,
                observed,
                block=block,
                split="test",
                thorough=False,
                progress=progress,
            )
        run.scores(scores)
    decision = registry.promote(
        scores,
        candidates=candidates,
        defender=defender,
        tracking=tracking,
        **settings.promotion.model_dump(),
    )
    if as_json:
        figures = {one: value if value == value else None for one, value in decision.scores.items()}
        _json({**asdict(decision), "scores": figures})
    else:
        print(decision.score)
        for one, value in decision.scores.items():
            print(f"  {one:30s} {value:.3f}")
        print(decision.reason)
    return 0 if decision.promoted else FAILURE


@app.command
def serve(
    *,
    model: str = "models:/nowcast@champion",
    port: int = 5001,
    work: Work = DEFAULT_WORK,
) -> int:
    """Serve a model on loopback with MLflow's own server, until interrupted.

    Example: nowcast serve --port 5001

    Parameters
    ----------
    model
        Of the registry.
    port
        On 127.0.0.1.
    """
    from nowcast import serving
    from nowcast.tracking import resolve

    tracking = _tracking(work)
    exact = resolve(model, tracking)
    _say(f"serving {exact} on http://{serving.HOST}:{port} (POST /invocations, GET /ping)")
    return serving.serve(exact, tracking, port=port)


@app.command
def issue(
    *,
    nowcaster: str,
    observations: str = "",
    source: Source = "",
    base_time: Annotated[list[str] | None, Parameter(negative=(), consume_multiple=True)] = None,
    lead_times: Annotated[list[int] | None, Parameter(negative=(), consume_multiple=True)] = None,
    members: int | None = None,
    field: Summary | None = None,
    endpoint: str = "",
    out: Path,
    config: Path | None = None,
    set_: Settings = None,
    work: Work = DEFAULT_WORK,
    as_json: Json = False,
) -> None:
    """Issue a nowcast: a CF netCDF file, a panel (PNG) and an animation (GIF).

    Example: nowcast issue --nowcaster models:/nowcast@champion --observations archive --out out

    Parameters
    ----------
    nowcaster
        Name, folder or model of the registry.
    observations
        Archive, NetCDF/Zarr path or radar files instead of the settings' data.observations.
    base_time
        UTC; by default the last frame.
    lead_times
        In minutes, instead of every step of the nowcaster's or the settings' window.
    members
        How many are drawn from the nowcaster's probabilities, and issued instead of its field.
    field
        The mean or the median of the nowcaster's probabilities is issued as its field: the mean
        for amounts.
    endpoint
        Address that serves the nowcaster, such as http://127.0.0.1:5001; it computes there.
    out
        Folder, made if missing.
    config
        TOML file of settings.
    """
    from nowcast import experiments, issuing
    from nowcast.nowcasters.derived import WithSummary
    from nowcast.nowcasters.members import Draw, WithMembers

    settings, leads = _config(config, set_), _minutes(lead_times)
    observed = experiments.observations(settings, observations, source=source)
    opened, provenance = experiments.opened(settings, nowcaster, _tracking(work), endpoint=endpoint)
    if leads is None:
        leads = experiments.lead_times_of(settings, opened, observed)
    if (members is not None or field) and endpoint:
        raise ValueError(
            "an endpoint answers with its field alone, and members, mean and median are of "
            "probabilities; leave --endpoint out, or --members and --field"
        )
    if members is not None and field:
        raise ValueError(
            f"members are issued in place of the field; received --members {members} and --field "
            f"{field}; leave one of them out"
        )
    if field:
        opened = WithSummary(opened, field)
    if members is not None:
        opened = WithMembers(opened, Draw(members=members))
    files = issuing.issue(
        opened,
        observed,
        base_times=experiments.times(observed, base_time or []),
        lead_times=leads,
        out=out,
        provenance=provenance,
    )
    if as_json:
        _json({"files": [str(path) for path in files]})
        return
    for path in files:
        print(path)


@app.command
def extract(
    *,
    nowcast: Annotated[list[str], Parameter(negative=(), consume_multiple=True)],
    points: Path | None = None,
    areas: Path | None = None,
    accumulate: Annotated[bool, Parameter(negative=())] = False,
    thresholds: Annotated[list[float] | None, Parameter(negative=(), consume_multiple=True)] = None,
    observations: str = "",
    source: Source = "",
    config: Path | None = None,
    set_: Settings = None,
    out: Path,
    as_json: Json = False,
) -> None:
    """Extract what issued nowcasts say of points or areas, as CSV or netCDF.

    Example: nowcast extract --nowcast issued --points gauges.csv --out gauges-nowcast.csv

    Parameters
    ----------
    nowcast
        Files that `issue` wrote, or folders of them.
    points
        CSV file with the columns name and lon, lat (degrees), or x, y (of the grid).
    areas
        GeoJSON file of polygons with names; means over them.
    accumulate
        Amounts (mm) from the base time to each lead time, instead of rates.
    thresholds
        Give the probability that these are reached, in the units of what is extracted.
    observations
        Archive, NetCDF/Zarr path or radar files, to give what was observed beside the nowcast.
    config
        TOML file of settings, for the observations.
    out
        File that ends in .csv or .nc.
    """
    from nowcast import exports
    from nowcast.issuing import open_nowcast
    from nowcast.places import read_places

    exports.check_suffix(out)
    files = exports.files_of(nowcast)
    places = read_places(open_nowcast(files[0]), points=points, areas=areas)
    observed = None
    if observations:
        from nowcast import experiments

        observed = experiments.observations(_config(config, set_), observations, source=source)
    values = exports.extract(
        files,
        places,
        accumulated=accumulate,
        thresholds=tuple(thresholds or ()),
        observed=observed,
    )
    exports.write_values(values, out)
    for remark in exports.remarks(values):
        _say(f"nowcast: {remark}")
    if as_json:
        _json({"file": str(out), "sizes": {str(dim): size for dim, size in values.sizes.items()}})
        return
    print(out)


@app.command
def export(
    *,
    nowcast: Annotated[list[str], Parameter(negative=(), consume_multiple=True)],
    out: Path,
    as_json: Json = False,
) -> None:
    """Export issued nowcasts as GeoTIFF: a file for each base time, a band for each lead time.

    Example: nowcast export --nowcast issued --out geotiff

    Parameters
    ----------
    nowcast
        Files that `issue` wrote, or folders of them.
    out
        Folder, made if missing.
    """
    from nowcast import exports

    files = exports.export_geotiff(exports.files_of(nowcast), out)
    if as_json:
        _json({"files": [str(path) for path in files]})
        return
    for path in files:
        print(path)


@app.command(name="list")
def list_(*, as_json: Json = False) -> None:
    """List the readers, networks and nowcasters.

    Example: nowcast list

    """
    from nowcast.data.readers import known_readers
    from nowcast.networks import NETWORKS
    from nowcast.nowcasters import NOWCASTERS

    readers = known_readers()
    known = {"readers": sorted(readers), "networks": [*NETWORKS], "nowcasters": [*NOWCASTERS]}
    if as_json:
        _json(known)
        return
    print("readers:")
    for name, reader in sorted(readers.items()):
        seen = "" if reader.seen else " (not yet seen on a real file)"
        print(f"  {name:12} {reader.description}{seen}")
    for kind in ("networks", "nowcasters"):
        print(f"{kind}: {', '.join(known[kind])}")
    print("also a nowcaster: a folder of a saved one; models:/NAME@ALIAS or models:/NAME/VERSION")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage; errors are one line."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _STATE.update(verbose="-v" in sys.argv or "--verbose" in sys.argv, quiet=False)
    try:
        status = app.meta(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        sys.exit(_fail(str(error), USAGE))
    except Exception as error:  # whatever it is, a person at a terminal gets one line
        if _STATE["verbose"]:
            logging.getLogger(__name__).exception("the traceback, since --verbose was given")
        from nowcast.config import ConfigError

        known = isinstance(error, OSError | ValueError | RuntimeError)
        message = str(error) if known else f"{type(error).__name__}: {error} (-v shows where)"
        sys.exit(_fail(message, USAGE if isinstance(error, ConfigError) else FAILURE))
    sys.exit(status if isinstance(status, int) else 0)


_STATE: dict[str, bool] = {"verbose": False, "quiet": False}


def _fail(message: str, status: int) -> int:
    line = " ".join(part.strip(" │╭╮╰╯─") for part in message.splitlines() if part.strip())
    print(f"nowcast: error: {line}", file=sys.stderr)
    return status


def _say(message: str) -> None:
    if not _STATE["quiet"]:
        print(message, file=sys.stderr, flush=True)


def _bar() -> int:
    """Give Keras's verbosity: a progress bar for a person, a line per epoch for a log."""
    if _STATE["quiet"]:
        return 0
    return 1 if sys.stdout.isatty() else 2


def _json(content: Any) -> None:
    print(json.dumps(content, indent=2, allow_nan=False))


def _tracking(work: Path) -> "Tracking":
    from nowcast.tracking import Tracking

    return Tracking(work)


def _config(path: Path | None, settings: list[str] | None) -> "Config":
    from nowcast.config import Config, ConfigError, load

    try:
        config = load(path) if path else Config()
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from error
    return config.replace(settings or [])


def _beginning(
    path: Path, settings: list[str] | None, start: str, tracking: "Tracking"
) -> tuple["Config", "NeuralNowcaster | None"]:
    """Give the settings of a training, and the nowcaster whose weights it goes on from."""
    from nowcast import experiments

    config = _config(path, settings)
    if not start:
        return config, None
    before = experiments.network_of(start, config, tracking)
    return experiments.continuing(config, before), before


def _minutes(values: list[int] | None) -> Any:
    import pandas as pd

    from nowcast.config import ConfigError

    if not values:
        return None
    minutes = sorted(set(values))
    if minutes[0] < 1 or minutes[-1] > MOST_MINUTES:
        wrong = ", ".join(str(one) for one in minutes if not 1 <= one <= MOST_MINUTES)
        raise ConfigError(
            f"lead times are whole minutes, from 1 to {MOST_MINUTES} (ten days); received {wrong}"
        )
    return pd.to_timedelta(minutes, unit="min")


def _check_scores_file(out: Path | None) -> None:
    from nowcast.config import ConfigError

    if out and (out.suffix != ".nc" or out.is_dir()):
        there = " and is a folder" if out.is_dir() else ""
        raise ConfigError(
            f"scores are written as netCDF, the report beside them as HTML; received {out}{there}; "
            "give a file that ends in .nc"
        )


def _ui(tracking: "Tracking") -> str:
    if tracking.uri.startswith("sqlite:"):
        return f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {tracking.uri}"
    return f"open {tracking.uri}"


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Give what draws a progress bar where a person waits."""
    if _STATE["quiet"] or not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
