"""The command line: parse, call one function, exit code.

Exit codes: 0 all done, 1 some items failed, 2 bad usage, configuration or data, 3 a fault of
regard's own, 130 interrupted. Heavy libraries
are imported inside each command, torch once its settings and data are read: help and complaints
come at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

import regard
from regard.apps.serve import Limits
from regard.errors import RegardError

if TYPE_CHECKING:
    from regard.comparison import Comparison
    from regard.data.dataset import Dataset
    from regard.describe import Decoding
    from regard.evaluation import Evaluation
    from regard.models.clip import Clip

app = typer.Typer(
    name="regard",
    help="Image captioners that look while they speak: train them, use them, see their gaze.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at a data set, or draw one.", no_args_is_help=True)
app.add_typer(data_app, name="data")

DataPath = Annotated[
    Path, typer.Argument(metavar="DATA", help="A data set: its folder, or its file of captions.")
]
Format = Annotated[
    str | None, typer.Option("--format", help="Name of the layout, if the detection is wrong.")
]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder of the photos, if they are elsewhere.")
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Leave out photos that are not there, and say so.")
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Folder of the feature cache (default: $REGARD_CACHE, or ~/.cache/regard/features).",
    ),
]
SplitSeed = Annotated[
    int, typer.Option("--split-seed", help="Seed of the splits where the data has none.")
]
ModelPath = Annotated[str, typer.Option("--model", help="A run, a model folder, or a hub id.")]
ModelPaths = Annotated[
    list[str],
    typer.Option(
        "--model",
        help="A run, a model folder, or a hub id. Given again, those models caption together.",
        show_default=regard.DEFAULT_MODEL,
    ),
]
Views = Annotated[
    int,
    typer.Option(
        "--views",
        metavar="N",
        help="See N views of each photo (the whole, mirrored, cropped; 12 at most), and choose "
        "each word by what all of them let expect.",
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run, a model folder, or a hub id.")
]
EncoderPlace = Annotated[
    str | None,
    typer.Option("--encoder", help="Where the encoder's weights are, if not where the model says."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id.")
]
Rerank = Annotated[
    str | None,
    typer.Option(
        "--rerank", help="Order candidates by this CLIP (a folder or a hub id), not by their score."
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Beam = Annotated[int, typer.Option("--beam", help="Width of the beam; 1 is greedy.")]
MaxLength = Annotated[
    int, typer.Option("--max-length", help="Most words (or pieces of words) of a caption.")
]
LengthPenalty = Annotated[
    float,
    typer.Option(
        "--length-penalty", help="Exponent of the length that log-probabilities are divided by."
    ),
]
MinLength = Annotated[
    int, typer.Option("--min-length", help="Fewest words (or pieces of words) of a caption.")
]
NoRepeat = Annotated[
    int | None,
    typer.Option("--no-repeat", metavar="N", help="Say no N words in a row twice in a caption."),
]
Forbid = Annotated[
    list[str] | None,
    typer.Option(
        "--forbid", metavar="PHRASE", help="A word or phrase that no caption has; may be repeated."
    ),
]
Prefix = Annotated[
    str, typer.Option("--prefix", help='What every caption begins with, such as "a photo of".')
]
Groups = Annotated[
    int,
    typer.Option("--groups", help="Groups of the beam that say different things; divides it."),
]
Diversity = Annotated[
    float,
    typer.Option(
        "--diversity", help="How much less probable (nats) a group finds what earlier ones said."
    ),
]
Sampling = Annotated[
    bool, typer.Option("--sample", help="Draw the words at random instead of beam search.")
]
Consensus = Annotated[
    int,
    typer.Option(
        "--consensus",
        metavar="N",
        help="Order candidates by how far N captions drawn at random agree with them.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the draws.")]
Temperature = Annotated[
    float, typer.Option("--temperature", help="Of the draws: below 1 sharper, above 1 flatter.")
]
TopK = Annotated[
    int | None, typer.Option("--top-k", help="Draw from this many most probable words.")
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", help="Draw from the most probable words with this much probability."),
]
Engine = Annotated[
    str, typer.Option("--engine", help="local: this machine; ray: the workers of a Ray cluster.")
]
WorkerCount = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="With ray: processes.", show_default="as many as there is room for"
    ),
]
WorkerCpus = Annotated[
    float, typer.Option("--worker-cpus", min=0.1, help="With ray: CPUs of a worker.")
]
WorkerGpus = Annotated[
    float, typer.Option("--worker-gpus", min=0.0, help="With ray: GPUs of a worker.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="With ray: of the cluster.",
        show_default="$RAY_ADDRESS, or this machine alone",
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from.", envvar="REGARD_DEBUG")
    ] = False,
) -> None:
    if debug:
        os.environ["REGARD_DEBUG"] = "1"
    if version:
        typer.echo(f"regard {regard.__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of everything it makes.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the scenes and the training.")] = 0,
) -> None:
    """Draw scenes, train a captioner on them, caption new ones: a few minutes, no network."""
    from regard.apps.demo import run_demo

    run_demo(out, seed=seed, say=typer.echo, training=_training_bar)


@data_app.command("check")
def data_check(
    data: DataPath,
    format: Format = None,
    images: Images = None,
    split_seed: SplitSeed = 0,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="File for the report, with every bad row.")
    ] = None,
) -> None:
    """Say what a data set holds and name every bad row. Exit code 1 if there are any."""
    from rich.console import Console

    from regard.data.check import check, render
    from regard.data.dataset import read_dataset
    from regard.files import write_json
    from regard.text.tokenise import tokenise

    dataset = read_dataset(data, layout=format, images=images, allow_missing=True, seed=split_seed)
    report = check(dataset, tokenise)
    Console(soft_wrap=True, highlight=False).print(render(report))
    if json_out is not None:
        write_json(json_out, report.as_dict())
    raise typer.Exit(0 if report.ok else 1)


@data_app.command("scenes")
def data_scenes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to draw into.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Scenes.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the drawing.")] = 0,
) -> None:
    """Draw scenes of named objects, with five captions each and the objects' boxes."""
    from regard.data.scenes import draw_scenes

    with _bar("scenes") as advance:
        draw_scenes(out, count=count, seed=seed, on_progress=advance)
    typer.echo(f"{count} scenes in {out}")


@app.command()
def features(
    data: DataPath,
    encoder: Annotated[
        str, typer.Option("--encoder", help="Hub id, local folder or weight file.")
    ] = "timm/resnet50.tv_in1k",
    revision: Revision = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", help="Side in pixels.", show_default="what the encoder expects"
        ),
    ] = None,
    resize: Annotated[str, typer.Option("--resize", help="squash or crop.")] = "squash",
    grid: Annotated[
        int | None,
        typer.Option(
            "--grid", help="Rows and columns of regions.", show_default="the encoder's own"
        ),
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, float32 or bf16.")] = "auto",
    device: Device = "auto",
    cache: Cache = None,
    format: Format = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    engine: Engine = "local",
    workers: WorkerCount = None,
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = 0.0,
    address: Address = None,
) -> None:
    """Run the frozen encoder over the photos of a data set, once; what is there is kept."""
    from regard.config import make_config

    dataset = _read(data, format, images, allow_missing)
    config = make_config(
        overrides={
            "encoder.id": encoder,
            "encoder.revision": revision,
            "encoder.image_size": image_size,
            "encoder.resize": resize,
            "encoder.grid": grid,
            "encoder.precision": precision,
        }
    )
    from regard.build import build_encoder
    from regard.data.features import build_features, cache_dir

    seer = build_encoder(config.encoder)
    if _on_ray(engine):
        from regard.apps.cluster.features import features_on_cluster
        from regard.apps.cluster.workers import Workers

        with _bar("photos") as advance:
            features_on_cluster(
                [p.path for p in dataset.photos], config.encoder, cache, device=device,
                workers=Workers(workers, worker_cpus, worker_gpus, address), on_progress=advance,
            )  # fmt: skip
    with _bar("photos") as advance:
        build_features(
            [p.path for p in dataset.photos], seer, cache, on_progress=advance, on_message=_note
        )
    typer.echo(f"features of {len(dataset.photos)} photos in {cache_dir(cache, seer)}")


class _TrainCommand(TyperCommand):
    """Help that goes on with every preset and setting, read only when help is asked for."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from regard.config import PRESETS, describe_fields

        with formatter.section("Presets"):
            formatter.write_dl([(name, text) for name, (text, _) in PRESETS.items()])
        with formatter.section("Settings, for --set NAME=VALUE or a YAML file"):
            formatter.write_dl([(f"{name}:", text) for name, text in describe_fields()])


@app.command(cls=_TrainCommand)
def train(
    data: DataPath,
    out: Annotated[Path, typer.Option("--out", help="The run: a new folder.")],
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="Hub id, local folder or weight file.")
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option("--decoder", help="lstm or transformer; see the preset of that name."),
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            "--vocabulary",
            help="words:5 for words seen 5 times or more, bpe:4000 for 4,000 pieces of words.",
        ),
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option("--embeddings", help="File of word vectors to start from.")
    ] = None,
    finished: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Train this finished captioner further (BLIP, GIT or vision-encoder-decoder; hub "
            "id, folder or run): all of it but the part that sees.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            help="Begin with this captioner of regard's own: a run, a model folder or a hub id.",
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            help="Learn what this captioner of regard's own expects at each word, too: a run, a "
            "model folder or a hub id. Given several times: what they expect together.",
        ),
    ] = None,
    scst: Annotated[
        bool,
        typer.Option(
            "--scst", help="Train the captioner of --init to say what is rewarded, as by CIDEr."
        ),
    ] = False,
    fine_tune: Annotated[
        int | None,
        typer.Option(
            "--fine-tune",
            min=1,
            help="Train this many last stages of the encoder as well, or blocks of what sees in "
            "--from; all of that: --set train.freeze=none.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Settings to begin with.",
            show_default="report; finetune with --from, scst with --scst",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, as in train.epochs=2.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run from its saved state.")
    ] = False,
    device: Device = "auto",
    devices: Annotated[int, typer.Option("--devices", min=1, help="Processes a machine.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    cache: Cache = None,
    format: Format = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    split_seed: SplitSeed = 0,
) -> None:
    """Train a captioner; the best epoch's model is left in OUT/model."""
    from regard.config import make_config

    overrides: dict[str, Any] = {}
    own = {
        "--encoder": encoder, "--decoder": decoder, "--vocabulary": vocabulary,
        "--embeddings": embeddings,
    }  # fmt: skip
    if finished is not None:
        if given := [option for option, value in own.items() if value is not None]:
            raise RegardError(
                f"{' and '.join(given)} cannot stand beside --from: {finished} has an encoder, a "
                "decoder and words of its own. Leave out the one or the other."
            )
        overrides["captioner.id"] = finished
    if init is not None:
        overrides["captioner.init"] = init
    if teacher:
        overrides["train.teachers"] = teacher
    if scst:
        overrides["train.objective"] = "scst"
    if encoder is not None:
        overrides["encoder.id"] = encoder
    if decoder is not None:
        overrides["decoder.kind"] = decoder
    if vocabulary is not None:
        overrides["text.vocabulary"] = vocabulary
    if embeddings is not None:
        overrides["text.embeddings"] = str(embeddings)
    if fine_tune is not None:
        overrides["encoder.fine_tune_stages"] = fine_tune
    made = make_config(preset=preset, file=config, settings=settings or (), overrides=overrides)
    dataset = _read(data, format, images, allow_missing, split_seed)

    from regard.training.run import Machine, train

    with _training_bar() as listener:
        outcome = train(
            dataset, made, out, resume=resume,
            machine=Machine(device=device, devices=devices, nodes=nodes),
            cache=cache, listener=listener,
        )  # fmt: skip
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    progress = outcome.progress
    if not progress.finished:
        typer.echo(
            f"Stopped after iteration {progress.step}; nothing is lost. Go on with the same "
            "command and --resume."
        )
        raise typer.Exit(130)
    best = f"Best epoch {progress.best_epoch}"
    if progress.best_epoch < 0:
        best = "No epoch is better than the captioner that it began with"
    typer.echo(f"{best}, CIDEr {progress.best:.3f}. The model is in {outcome.model}")


@app.command()
def caption(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PHOTO|FOLDER|GLOB]...",
            help="Photos, folders (with those below them), globs; - reads names from standard "
            "input.",
        ),
    ] = None,
    *,
    model: ModelPaths = [],  # noqa: B006
    views: Views = 1,
    beam: Beam = 3,
    groups: Groups = 1,
    diversity: Diversity = 0.5,
    min_length: MinLength = 1,
    max_length: MaxLength = 30,
    length_penalty: LengthPenalty = 0.7,
    no_repeat: NoRepeat = None,
    forbid: Forbid = None,
    prefix: Prefix = "",
    sampling: Sampling = False,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    consensus: Consensus = 0,
    seed: Seed = 0,
    count: Annotated[
        int,
        typer.Option(
            "--count",
            help="Captions of each photo, with their scores: the best of the beam, or draws.",
        ),
    ] = 1,
    lists: Annotated[
        list[Path] | None,
        typer.Option("--from", metavar="LIST", help="File of names, one a line; may be repeated."),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            help="File for a record a photo: .jsonl, .csv or .parquet. A later run with it goes on "
            "where this one stopped, and captions only what is new or has changed. With ray a "
            "folder of Parquet, or the URL of one.",
        ),
    ] = None,
    txt: Annotated[
        bool, typer.Option("--txt", help="Write photo.jpg.txt beside photo.jpg.")
    ] = False,
    xmp: Annotated[
        bool, typer.Option("--xmp", help="Write photo.jpg.xmp, or add to it, beside photo.jpg.")
    ] = False,
    xmp_stem: Annotated[
        bool, typer.Option("--xmp-stem", help="As --xmp, but photo.xmp, as Lightroom has it.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace texts beside photos that people wrote.")
    ] = False,
    alt_text: Annotated[
        bool,
        typer.Option(
            "--alt-text",
            help="Make each caption an alternative text: a sentence of at most 125 characters.",
        ),
    ] = False,
    gallery: Annotated[
        Path | None,
        typer.Option("--gallery", help="Folder for a page with all photos, captions and gaze."),
    ] = None,
    gaze: Annotated[
        Path | None, typer.Option("--gaze", help="Folder for a picture of the gaze a photo.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Name the photos that would be captioned; do nothing.")
    ] = False,
    log: Annotated[
        str, typer.Option("--log", help="text; json: an event a line; quiet: failures alone.")
    ] = "text",
    rerank: Rerank = None,
    revision: Revision = None,
    encoder: EncoderPlace = None,
    device: Device = "auto",
    engine: Engine = "local",
    workers: WorkerCount = None,
    worker_cpus: WorkerCpus = 1.0,
    worker_gpus: WorkerGpus = 0.0,
    address: Address = None,
    unit: Annotated[
        int, typer.Option("--unit", min=1, help="With ray: photos of a shard, about.")
    ] = 1024,
) -> None:
    """Caption photos, or folders of them. Exit code 1 if one could not be; the others still are."""
    model = model or [regard.DEFAULT_MODEL]
    from regard.apps.listeners import listener_of

    if _on_ray(engine):
        from regard.apps.cluster.captions import Speaking, caption_on_cluster
        from regard.apps.cluster.workers import Workers

        beside = {
            "--txt": txt, "--xmp": xmp, "--xmp-stem": xmp_stem, "--overwrite": overwrite,
            "--gallery": gallery, "--gaze": gaze,
        }  # fmt: skip
        if chosen := [option for option, value in beside.items() if value]:
            raise RegardError(
                f"{' and '.join(chosen)} cannot stand beside --engine ray, which leaves records "
                "alone. Leave them out; a local run writes them."
            )
        if out is None:
            raise RegardError(
                "There is no folder for the shards. Give one that all workers reach with --out, "
                "such as --out captions/"
            )
        tally = caption_on_cluster(
            Speaking(
                tuple(model), _decoding(locals()), alt=alt_text, clip=rerank, encoder=encoder,
                revision=revision, device=device, views=views,
            ),
            photos or (), lists or (), str(out), listener_of(log, captions=False, count=count),
            workers=Workers(workers, worker_cpus, worker_gpus, address), unit_size=unit,
            dry_run=dry_run,
        )  # fmt: skip
        raise typer.Exit(1 if tally.failed else 0)
    from regard.apps.names import Photos
    from regard.apps.photos import Outputs, caption_photos
    from regard.apps.sidecars import sidecars_of
    from regard.captioner import load

    outputs = Outputs(
        out=None if out is None else Path(out),
        sidecars=sidecars_of(txt=txt, xmp=xmp, xmp_stem=xmp_stem), overwrite=overwrite,
        alt=alt_text, gallery=gallery, gaze=gaze,
    )  # fmt: skip
    meant = Photos(photos or (), lists or (), apart=outputs.pictures)
    listener = listener_of(log, captions=out is None or meant.single, count=count)
    decoding = _decoding(locals())
    captioner = load(model, encoder=encoder, revision=revision, device=device, views=views)
    if len(model) == 1:
        _note_commit(model[0], captioner.folder)
    tally = caption_photos(
        captioner, meant, decoding, outputs, listener, clip=_reranker(rerank, device),
        dry_run=dry_run,
    )  # fmt: skip
    raise typer.Exit(1 if tally.failed else 0)


_LIMITS = Limits()


@app.command()
def serve(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            metavar="[NAME=]MODEL",
            help="A run, a model folder, or a hub id; may be repeated, to choose from on the page.",
            show_default=regard.DEFAULT_MODEL,
        ),
    ] = [],  # noqa: B006
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes one that is free.")
    ] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="Name that browsers know the server by; may be repeated."),
    ] = None,
    megabytes: Annotated[
        float, typer.Option("--megabytes", min=0.001, help="Of a photo's file, at most.")
    ] = _LIMITS.megabytes,
    megapixels: Annotated[
        float, typer.Option("--megapixels", min=0.001, help="Of a photo, at most.")
    ] = _LIMITS.megapixels,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="For an upload, and for a caption.")
    ] = _LIMITS.seconds,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Photos that wait for a model, at most.")
    ] = _LIMITS.queue,
    per_client: Annotated[
        int, typer.Option("--per-client", min=1, help="Requests of one address at a time.")
    ] = _LIMITS.per_client,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Photos that are captioned together, at most.")
    ] = _LIMITS.batch,
    revision: Revision = None,
    encoder: EncoderPlace = None,
    device: Device = "auto",
) -> None:
    """Serve a web page that captions photos, and the HTTP API that it uses, until interrupted."""
    from regard.apps.serve import start

    start(
        model or [regard.DEFAULT_MODEL],
        Limits(megabytes, megapixels, seconds, queue, per_client, batch), host=host,
        port=port, names=name or (), revision=revision, encoder=encoder, device=device,
        say=typer.echo,
    )  # fmt: skip


@app.command()
def find(
    query: Annotated[str, typer.Argument(metavar="QUERY", help='Words, such as "dog on a beach".')],
    captions: Annotated[
        Path,
        typer.Argument(
            metavar="CAPTIONS", help="File of `regard caption --out`, or folder of shards."
        ),
    ],
    limit: Annotated[int, typer.Option("--limit", min=1, help="Photos at most.")] = 20,
    gallery: Annotated[
        Path | None, typer.Option("--gallery", help="Folder for a page with the photos found.")
    ] = None,
) -> None:
    """Find photos by what their captions say, the best first. Exit code 1 if there are none."""
    from regard.apps.find import find_captions
    from regard.apps.gallery import write_gallery
    from regard.apps.records import shown

    found = find_captions(query, captions, limit=limit)
    if not found.records:
        _note(f"No caption in {captions} has a word of {query!r}.")
        raise typer.Exit(1)
    if not found.whole:
        _note(f"No caption has all words of {query!r}; these have some.")
    for record in found.records:
        typer.echo(f"{shown(record['path'])}: {record.get('alt_text') or record['caption']}")
    if found.count > len(found.records):
        _note(f"{len(found.records)} of {found.count} are shown; --limit shows more.")
    if gallery is not None:
        write_gallery(gallery, found.records, title=query)
        _note(f"The page is {gallery / 'index.html'}")


@app.command()
def evaluate(
    data: DataPath,
    split: Annotated[
        str, typer.Option("--split", help="train, val (or dev), test or all.")
    ] = "val",
    model: ModelPaths = [],  # noqa: B006
    views: Views = 1,
    captions: Annotated[
        Path | None,
        typer.Option("--captions", help="Captions made elsewhere: JSON lines, or COCO results."),
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="File for scores, settings and captions.")
    ] = None,
    meteor: Annotated[
        bool | None,
        typer.Option(
            "--meteor/--no-meteor", help="METEOR.", show_default="where its tables are installed"
        ),
    ] = None,
    spice: Annotated[
        bool, typer.Option("--spice", help="SPICE too, which needs Java and its models.")
    ] = False,
    clip: Annotated[
        str | None,
        typer.Option("--clip", help="CLIPScore too, with this CLIP: a folder or a hub id."),
    ] = None,
    beam: Beam = 3,
    groups: Groups = 1,
    diversity: Diversity = 0.5,
    min_length: MinLength = 1,
    max_length: MaxLength = 30,
    length_penalty: LengthPenalty = 0.7,
    no_repeat: NoRepeat = None,
    forbid: Forbid = None,
    prefix: Prefix = "",
    sampling: Sampling = False,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    consensus: Consensus = 0,
    seed: Seed = 0,
    count: Annotated[
        int,
        typer.Option("--count", help="Draws of each photo, of which the best is scored."),
    ] = 1,
    rerank: Rerank = None,
    revision: Revision = None,
    encoder: EncoderPlace = None,
    device: Device = "auto",
    cache: Cache = None,
    format: Format = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    split_seed: SplitSeed = 0,
) -> None:
    """Score a model's captions, or captions from a file, against the references of a split.

    Exit code 1 if a score that was asked for could not be had; the others still come.
    """
    from regard.ensemble import read_ensemble
    from regard.evaluation import (
        Extras,
        evaluate_captions,
        evaluate_finished,
        evaluate_model,
        read_captions,
    )
    from regard.finished import find_finished, load_finished

    if model and captions is not None:
        raise RegardError("Give either --model or --captions.")
    model = model or [regard.DEFAULT_MODEL]
    dataset = _read(data, format, images, allow_missing, split_seed)
    extras = Extras(meteor=meteor, spice=spice, clip=clip)
    if captions is not None:
        result = evaluate_captions(
            dataset,
            split,
            read_captions(captions),
            source=str(captions),
            extras=extras,
            device=device,
        )
    else:
        decoding = _decoding(locals())
        judge = _reranker(rerank, device)
        alone = len(model) == views == 1
        if alone and find_finished(model[0], revision=revision) is not None:
            finished = load_finished(model[0], revision=revision, device=device)
            _note_commit(model[0], finished.folder)
            with _bar("captions") as said:
                result = evaluate_finished(
                    dataset, split, finished, decoding, extras=extras, device=device, clip=judge,
                    on_captions=said,
                )  # fmt: skip
        else:
            loaded = read_ensemble(model, encoder=encoder, revision=revision, views=views)
            for source, member in zip(model, loaded.members, strict=True):
                _note_commit(source, member.folder)
            with _bar("photos") as seen, _bar("captions") as said:
                result = evaluate_model(
                    dataset, split, loaded, decoding, extras=extras, device=device, cache=cache,
                    clip=judge, on_features=seen, on_captions=said,
                )  # fmt: skip
    if json_out is not None:
        result.write(json_out)
    _print_evaluation(result)
    for line in result.left_out:
        _warn(line)
    asked = {"METEOR": meteor, "SPICE": spice, "CLIPScore": clip}
    failed = [line for line in result.left_out if asked.get(line.split()[0])]
    raise typer.Exit(1 if failed else 0)


@app.command()
def compare(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="A.json B.json ...", help="Files of `regard evaluate --json`."),
    ],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the drawings.")] = 0,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="File for the comparison.")
    ] = None,
) -> None:
    """Say which differences between evaluations are more than chance, by a paired bootstrap."""
    from regard.comparison import compare
    from regard.files import write_json

    found = compare(files, seed=seed)
    if json_out is not None:
        write_json(json_out, found.as_dict())
    _print_comparison(found)


@app.command("gaze-check")
def gaze_check(
    data: DataPath,
    model: ModelPath = regard.DEFAULT_MODEL,
    split: Annotated[
        str, typer.Option("--split", help="train, val (or dev), test or all.")
    ] = "test",
    boxes: Annotated[
        Path | None,
        typer.Option(
            "--boxes", help="Folder of Flickr30k Entities, with Annotations/ and Sentences/."
        ),
    ] = None,
    forced: Annotated[
        bool, typer.Option("--forced", help="Read people's captions to the model.")
    ] = False,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="File for all measures and every word judged.")
    ] = None,
    beam: Beam = 3,
    max_length: MaxLength = 30,
    length_penalty: LengthPenalty = 0.7,
    encoder: EncoderPlace = None,
    cache: Cache = None,
    format: Format = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    split_seed: SplitSeed = 0,
) -> None:
    """Measure whether a captioner looks at what it names, against boxes of the named things."""
    dataset = _read(data, format, images, allow_missing, split_seed)

    from rich.console import Console

    from regard.checkpoint import read_model
    from regard.describe import Decoding
    from regard.gaze_check import check_gaze, render

    decoding = Decoding(beam=beam, max_length=max_length, length_penalty=length_penalty)
    loaded = read_model(model, encoder=encoder)
    with _bar("photos") as seen, _bar("captions") as judged:
        result = check_gaze(
            dataset, split, loaded, decoding, entities=boxes, forced=forced, cache=cache,
            on_features=seen, on_photos=judged,
        )  # fmt: skip
    if json_out is not None:
        result.write(json_out)
    Console(soft_wrap=True, highlight=False).print(render(result))


@app.command()
def export(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the networks, not there yet or empty.")
    ],
    revision: Revision = None,
    encoder: EncoderPlace = None,
) -> None:
    """Write a captioner as ONNX, for onnxruntime, and see that it says the same."""
    from regard.apps.export import export_model

    differences = export_model(model, out, encoder=encoder, revision=revision)
    said = ", ".join(f"{name} {far:.0e}" for name, far in differences.items())
    typer.echo(f"The exported captioner is in {out}. Furthest from torch: {said}")


@app.command()
def push(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run, a model folder, or an exported captioner."),
    ],
    repository: Annotated[
        str, typer.Argument(metavar="REPO_ID", help="Its id on the hub, user/name.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="A repository that is made is seen by you alone.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, made if it is not there.")
    ] = None,
) -> None:
    """Put a captioner on the hub; the token is that of HF_TOKEN or `hf auth login`."""
    from regard.apps.push import push_model

    commit = push_model(model, repository, private=private, revision=revision, say=_note)
    typer.echo(f"{repository} is at commit {commit}. Use it with --model {repository}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs of `regard train`.")],
    data: Annotated[
        Path, typer.Option("--data", metavar="DATA", help="A data set: its folder, or its file.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the page and its figures.")],
    split: Annotated[
        str, typer.Option("--split", help="Of the scores and the photos shown.")
    ] = "val",
    photos: Annotated[int, typer.Option("--photos", min=1, help="Photos shown.")] = 12,
    beam: Beam = 3,
    max_length: MaxLength = 30,
    length_penalty: LengthPenalty = 0.7,
    encoder: EncoderPlace = None,
    device: Device = "auto",
    cache: Cache = None,
    format: Format = None,
    images: Images = None,
    allow_missing: AllowMissing = False,
    split_seed: SplitSeed = 0,
) -> None:
    """Write one page on how a training went and what the model looks at; or on several runs."""
    dataset = _read(data, format, images, allow_missing, split_seed)

    from regard.apps.report import make_report
    from regard.describe import Decoding

    decoding = Decoding(beam=beam, max_length=max_length, length_penalty=length_penalty)
    page = make_report(
        runs, dataset, out, split=split, photos=photos, decoding=decoding, encoder=encoder,
        device=device, cache=cache, say=_note,
    )  # fmt: skip
    typer.echo(f"The report is {page}")


def main() -> None:
    """Run the command line; an error that a person can repair is one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except RegardError as error:
        if os.environ.get("REGARD_DEBUG"):
            raise
        _warn(f"regard: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _warn("regard: interrupted.")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("REGARD_DEBUG"):
            raise
        said = " ".join(str(error).split())
        _warn(
            f"regard: {type(error).__name__}: {said:.300}. This is a fault of regard's own. The "
            "same command after `regard --debug` shows where; please report that."
        )
        sys.exit(3)


def _read(
    data: Path, format: str | None, images: Path | None, allow_missing: bool, seed: int = 0
) -> Dataset:
    from regard.data.dataset import read_dataset

    dataset = read_dataset(
        data, layout=format, images=images, allow_missing=allow_missing, seed=seed
    )
    missing = sum(problem.kind == "missing photo" for problem in dataset.problems)
    if missing:
        _note(f"{missing} missing photos are left out.")
    others = len(dataset.problems) - missing
    if others:
        _note(f"{others} rows were repaired or left out; `regard data check {data}` names them.")
    return dataset


def _decoding(options: Mapping[str, Any]) -> Decoding:
    """How captions are chosen, by a command's options: one of the same name for each field."""
    from regard.describe import Decoding

    if options["consensus"] and options["rerank"]:
        raise RegardError(
            "--consensus and --rerank each put the candidates in an order of their own. Give one."
        )
    chosen = {field.name: options[field.name] for field in fields(Decoding)}
    return Decoding(**chosen | {"forbid": tuple(chosen["forbid"] or ())})


def _on_ray(engine: str) -> bool:
    if engine not in ("local", "ray"):
        raise RegardError(f"--engine is {engine!r}, it must be local or ray.")
    return engine == "ray"


def _reranker(source: str | None, device: str) -> Clip | None:
    if source is None:
        return None
    from regard.models.clip import load_clip

    return load_clip(source, device=device, option="--rerank")


def _note_commit(model: str, folder: Path | None) -> None:
    """Say which commit a model of the hub is of: a branch may be another one tomorrow."""
    from regard.models.hub import commit_of

    if folder is not None and (commit := commit_of(folder)) is not None:
        _note(f"{model} is at commit {commit}.")


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _warn(text: str) -> None:
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    typer.echo(typer.style(text, fg="red") if coloured else text, err=True)


@contextmanager
def _bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with a rate and the time left; it appears with the first report."""
    from regard.apps.bars import counting_bar

    with counting_bar("rate") as progress:
        task = progress.add_task(unit, total=None, visible=False, rate="")

        def advance(done: int, total: int) -> None:
            speed = progress.tasks[0].speed
            progress.update(
                task, completed=done, total=total, visible=True,
                rate=f"{speed:.0f} {unit}/s" if speed else "",
            )  # fmt: skip

        yield advance


@contextmanager
def _training_bar() -> Iterator[Any]:
    """What is shown of a training: bars on a terminal, and a line an epoch everywhere."""
    from regard.apps.bars import counting_bar
    from regard.training.loop import Progress as Done
    from regard.training.loop import Watch
    from regard.training.run import Listener

    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield Listener()
        return
    with _bar("photos") as encoded, counting_bar("state") as bar:
        task = bar.add_task("training", total=None, visible=False, state="")

        def begin(done: int, steps_per_epoch: int, steps: int) -> None:
            bar.update(task, completed=done, total=steps, visible=True)

        def iteration(done: Done, loss: float, rate: float) -> None:
            bar.update(
                task, completed=done.step,
                state=f"epoch {done.epoch}  loss {loss:.3f}  {rate:.0f} captions/s",
            )  # fmt: skip

        def epoch(row: dict[str, float]) -> None:
            bar.console.print(
                f"epoch {row['epoch']:.0f}  iteration {row['iteration']:.0f}  "
                f"loss {row['train_loss']:.3f}  val loss {row['val_loss']:.3f}  "
                f"BLEU-4 {row['BLEU-4']:.3f}  CIDEr {row['CIDEr']:.3f}  {row['seconds']:.0f} s",
                highlight=False,
            )

        def start(row: dict[str, float]) -> None:
            bar.console.print(
                f"as begun with  val loss {row['val_loss']:.3f}  BLEU-4 {row['BLEU-4']:.3f}  "
                f"CIDEr {row['CIDEr']:.3f}",
                highlight=False,
            )

        yield Listener(
            message=lambda text: bar.console.print(text, highlight=False),
            features=encoded,
            begin=begin,
            watch=Watch(start=start, iteration=iteration, epoch=epoch),
        )


def _print_evaluation(result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 3, 0, 0))
    table.add_column("")
    table.add_column("captions", justify="right")
    table.add_column("one human against the others", justify="right")
    table.add_column("computed by")
    for name, score in result.scores.items():
        table.add_row(name, f"{score.corpus:.4f}", _rounded(result.human.get(name)), score.engine)
    table.add_section()
    for name, value in result.diagnosis.items():
        table.add_row(name, _rounded(value), _rounded(result.human_diagnosis.get(name)))
    settings = result.settings
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(
        f"\n{settings['data']}, {settings['split']}, {settings['number_of_photos']} photos; "
        f"{settings['tokenisation']}"
    )


def _print_comparison(found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0))
    for name in ("", "evaluation", "value", "95 %", "difference", "95 %", "p"):
        text = name in ("", "evaluation")
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    differences = {(d.score, d.other): d for d in found.differences}
    for score, intervals in found.scores.items():
        for name, of in zip(found.names, intervals, strict=True):
            first = name == found.names[0]
            cells = [
                score if first else "",
                name,
                f"{of.value:.4f}",
                f"{of.low:.3f} to {of.high:.3f}",
            ]
            if (d := differences.get((score, name))) is not None:
                less = d.difference
                cells += [
                    f"{less.value:+.4f}", f"{less.low:+.3f} to {less.high:+.3f}", f"{d.p:.4f}"
                ]  # fmt: skip
            table.add_row(*cells)
    # A table is cut where a line of text goes on: a narrow terminal shall wrap both.
    console = Console(highlight=False, markup=False, width=max(100, Console().width))
    console.print(table)
    console.print(
        f"\nDifferences are from {found.names[0]}. {found.photos} photos; intervals from "
        f"{found.resamples:,} paired drawings of them with replacement; p is two-sided."
    )
    for line in found.left_out:
        _note(f"Left out: {line}")


def _rounded(value: float | None) -> str:
    """A number for a table: whole ones as they are, none as a dash."""
    if value is None:
        return "-"
    return str(int(value)) if value == int(value) and abs(value) > 1 else f"{value:.4f}"
