"""`diptych`: the commands and their options. What a command does is in its own module, imported when it runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cli.media import Media, MediaLimits, OrderedMedia, Turn

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEMO_MODEL = "models/demo"

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Serve Qwen2-VL inside your own network, and ask it about pictures and videos.",
)

Address = Annotated[str, typer.Option(help="The gateway's address.", envvar="DIPTYCH_ADDRESS")]
Question = Annotated[str, typer.Argument(help="What to ask.")]
Images = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="A picture: a file, a URI or sha256:DIGEST. Repeat for more; media are shown in the order given.",
    ),
]
Videos = Annotated[list[str] | None, typer.Option("--video", metavar="FILE", help="A video, named like a picture.")]
System = Annotated[str | None, typer.Option(help="Instructions to the model, before the question.")]
MinPixels = Annotated[int | None, typer.Option(min=1, help="Enlarge each picture or frame to at least this many.")]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Shrink each picture or frame to at most this many.")]
NoStore = Annotated[bool, typer.Option("--no-store", help="Leave nothing behind in the caches.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one message a line.")]
Model = Annotated[str, typer.Option(help="A folder or a hub id of a Qwen2-VL checkpoint.", envvar="DIPTYCH_MODEL")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.command(cls=OrderedMedia)
def chat(
    context: typer.Context,
    question: Question,
    image: Images = None,
    video: Videos = None,
    system: System = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of the answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy. Unset: the model's own.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answer.")] = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    no_store: NoStore = False,
    address: Address = DEFAULT_ADDRESS,
    json: Json = False,
) -> None:
    """Ask about pictures and videos; the answer is printed as it is generated."""
    from cli import chat as command

    media = Media.in_order(context, image, video, MediaLimits(min_pixels, max_pixels))
    turn = Turn(question, media, system, no_store)
    options = command.Options(max_tokens=max_tokens, temperature=temperature, seed=seed)
    raise typer.Exit(command.run(address, turn, options, as_json=json))


@app.command(cls=OrderedMedia)
def explain(
    context: typer.Context,
    question: Question,
    image: Images = None,
    video: Videos = None,
    system: System = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    png: Annotated[
        Path | None, typer.Option(help="Write the first picture, as the model sees it, with its patch grid.")
    ] = None,
    no_store: NoStore = False,
    address: Address = DEFAULT_ADDRESS,
    json: Json = False,
) -> None:
    """Show what the model would be given: spans, tokens, grids, positions and cache keys. Nothing is generated."""
    from cli import explain as command

    media = Media.in_order(context, image, video, MediaLimits(min_pixels, max_pixels))
    turn = Turn(question, media, system, no_store)
    raise typer.Exit(command.run(address, turn, png, as_json=json))


@app.command()
def model(address: Address = DEFAULT_ADDRESS, json: Json = False) -> None:
    """Show the model that answers, its limits and its defaults."""
    from cli import model as command

    raise typer.Exit(command.run(address, as_json=json))


@app.command()
def purge(
    tenant: Annotated[str | None, typer.Option(help="Another tenant, which needs a token of scope admin.")] = None,
    address: Address = DEFAULT_ADDRESS,
    json: Json = False,
) -> None:
    """Remove everything that is kept or cached of your tenant, work under way included."""
    from cli import purge as command

    raise typer.Exit(command.run(address, tenant, as_json=json))


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="The tenant: letters, digits, dots, dashes and underscores.")],
    admin: Annotated[bool, typer.Option("--admin", help="A token that may administer, too.")] = False,
) -> None:
    """Make a bearer token: prints it, then its line for the gateway's DIPTYCH_GATEWAY_TOKENS_FILE."""
    from cli import token as command

    raise typer.Exit(command.run(name, admin=admin))


@app.command()
def up(
    model: Model,
    cache_url: Annotated[
        str | None,
        typer.Option(
            help="A cache that runs already, such as redis://host:6379. Unset: a Redis is started.",
            envvar="DIPTYCH_CACHE_URL",
        ),
    ] = None,
    redis: Annotated[bool, typer.Option(help="--no-redis sends embeddings inline instead.")] = True,
    dtype: Dtype = "auto",
    device: Device = "auto",
    listen: Annotated[str, typer.Option(help="Where the gateway listens.")] = DEFAULT_ADDRESS,
    logs: Annotated[Path | None, typer.Option(help="Keep the services' logs in this folder.")] = None,
) -> None:
    """Run gateway, encoder, decoder and Redis on this machine. Ctrl-C finishes what runs, then stops all of it."""
    from cli import up as command
    from cli.stack import StackOptions

    if cache_url is not None and not redis:
        raise typer.BadParameter("give either --cache-url or --no-redis")
    options = StackOptions(model, cache_url, redis=redis, dtype=dtype, device=device, listen=listen, logs=logs)
    raise typer.Exit(command.run(options))


@app.command()
def top(
    addresses: Annotated[
        list[str],
        typer.Argument(help="Where metrics are: host:port or https://host:port.", envvar="DIPTYCH_METRICS"),
    ],
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between frames.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame, of all that was since the start.")] = False,
) -> None:
    """Watch gateways, encoders and decoders work: load, latencies, caches. `diptych up` prints their addresses."""
    from cli import top as command

    raise typer.Exit(command.run(addresses, interval_s=interval, once=once))


@app.command()
def demo(model: Model = DEMO_MODEL) -> None:
    """Start everything with the small checkpoint, ask about real pictures and a video, show the cache, stop."""
    from cli import demo as command

    raise typer.Exit(command.run(model))


@app.command(name="eval")
def evaluate(
    model: Model = DEMO_MODEL,
    address: Annotated[str | None, typer.Option(help="A gateway that runs already. Unset: one is started.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Held-out cases of each skill.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Which held-out cases.")] = 0,
    markdown: Annotated[Path | None, typer.Option(help="Write the table here, too.")] = None,
    json: Json = False,
) -> None:
    """Measure the small checkpoint on held-out cases of each skill, through a running gateway."""
    from cli import evaluate as command

    options = command.Options(model=model, address=address, count=count, seed=seed, markdown=markdown)
    raise typer.Exit(command.run(options, as_json=json))


def main() -> None:
    """Runs the command line: exits with 1 when a request fails and with 2 when the command is wrong."""
    # gRPC's C core writes notices about forks and shutdowns to stderr, between the words of an answer.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    app()
