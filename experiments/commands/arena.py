"""`humor-env arena`: people judge lines blind on a web page.

humor-env arena runs/pocket-quickstart --teacher --raters 2
humor-env arena --store arena.sqlite --export judged
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from humor_env.errors import InvalidOption
from humor_env.experiments.options import Seed
from humor_env.shared.json_lines import read_text

if TYPE_CHECKING:
    from humor_env.experiments.arena.session import Arena
    from humor_env.experiments.arena.store import Store


def add_commands(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: humor-env arena runs/pocket-quickstart --teacher --raters 2 · humor-env arena --file "
        "teacher=lines.jsonl --file mine.jsonl --share --raters tokens.txt · humor-env arena --export judged · "
        "humor-env arena --forget 3"
    )(arena)


def arena(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs, or of a reproduction.")] = None,
    file: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]FILE", help="Lines or pairs to judge; repeatable.")
    ] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="Show the teacher's held-out lines too.")] = False,
    system: Annotated[list[str] | None, typer.Option(help="Show only this system; repeatable.")] = None,
    critic: Annotated[list[str] | None, typer.Option(help="A free critic to compare with people; repeatable.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A fixed plan: JSON lines with prompt, first and second.")] = None,
    store: Annotated[
        Path, typer.Option(help="The file that keeps the answers. Give it again to continue a session.")
    ] = Path("arena.sqlite"),
    raters: Annotated[str, typer.Option(help="How many raters, or a file with one token per line.")] = "1",
    mode: Annotated[str, typer.Option(help="pairs, or ratings (grade single lines from 0 to 4).")] = "pairs",
    ask: Annotated[
        list[str] | None, typer.Option(help="humor, consistency or overall; repeatable. Default: the first two.")
    ] = None,
    per_rater: Annotated[int, typer.Option(min=1, help="The most pairs shown to one rater.")] = 100,
    repeats: Annotated[float, typer.Option(help="The share of pairs shown again with sides swapped.")] = 0.1,
    overlap: Annotated[float, typer.Option(help="The share of pairs that other raters judge too.")] = 0.3,
    choose: Annotated[str, typer.Option(help="adaptive (the most informative pair), or random.")] = "adaptive",
    title: Annotated[str, typer.Option(help="The title of the results.")] = "Which is funnier?",
    share: Annotated[
        bool, typer.Option("--share", help="Let other machines connect. For a lab, not the internet.")
    ] = False,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1, or all with --share.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8765,
    export: Annotated[
        Path | None, typer.Option(help="Write the files of the session to this folder, and exit.")
    ] = None,
    forget: Annotated[int | None, typer.Option(min=1, help="Delete all answers of this rater, and exit.")] = None,
    close: Annotated[bool, typer.Option("--close", help="Accept no more answers, and exit.")] = False,
    reopen: Annotated[bool, typer.Option("--reopen", help="Accept answers again, and exit.")] = False,
    seed: Seed = 0,
) -> None:
    """Let people judge lines blind on a web page: which is funnier, and which keeps the meaning."""
    from humor_env.experiments.arena.store import Settings, Store

    if export is not None or forget is not None or close or reopen:
        with Store.open(store) as opened:
            _manage(opened, export, forget, close, reopen)
        return
    if mode not in ("pairs", "ratings"):
        raise InvalidOption(f"--mode is pairs or ratings; found {mode!r}.")
    if choose not in ("adaptive", "random"):
        raise InvalidOption(f"--choose is adaptive or random; found {choose!r}. A plan of your own: --plan FILE.")
    from humor_env.experiments.arena import server
    from humor_env.experiments.arena.session import Arena
    from humor_env.shared.line_file import only_writer

    host = host or ("0.0.0.0" if share else "127.0.0.1")
    if not share and host not in server.LOOPBACK:
        raise InvalidOption(f"'{host}' is reachable from other machines. Add --share to allow that.")
    tokens = _tokens(raters, share)
    refusal = f"Another server is using '{store}'. Stop it, or give another --store."
    store.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(store.with_name(store.name + ".lock"), refusal):
        material = None
        if runs or file or not store.exists():
            from humor_env.experiments.arena.sources import gather, scored

            material = gather(runs or [], file or [], teacher=teacher, systems=system or [], plan=plan)
            if mode == "pairs" and not material.plan and len(material.systems) < 2:
                raise InvalidOption(
                    f"Only '{material.systems[0]}' has lines, and pairs need two systems. Give --teacher or another "
                    "--file, or grade single lines with --mode ratings."
                )
            if not store.exists():
                material = scored(material, critic or [])
        if store.exists():
            opened = Store.open(store)
            if material is not None and material.digest() != opened.digest:
                opened.close()
                raise InvalidOption(
                    f"'{store}' holds another session, with other lines. Give --store for a new one, or name no run "
                    "to continue it."
                )
            opened.add_raters(tokens)
        else:
            assert material is not None
            questions = tuple(ask or ("humor", "consistency", *(["overall"] if material.asks_overall else [])))
            settings = Settings(
                title=title,
                mode="ratings" if mode == "ratings" else "pairs",
                questions=questions,
                per_rater=per_rater,
                repeats=repeats,
                overlap=overlap,
                choose="plan" if material.plan else "random" if choose == "random" else "adaptive",
                seed=seed,
            )
            opened = Store.create(store, material, settings, tokens)
        with opened:
            at = server.open_socket(host, port)
            live_arena = Arena(opened, shared=share)
            address = _shown_host(host)
            own_tokens = [] if isinstance(tokens, int) else tokens
            _print_links(live_arena, f"http://{address}:{at.getsockname()[1]}", share, own_tokens)
            server.serve(server.make_app(live_arena), at)
            typer.echo(f"Stopped. To continue: humor-env arena --store {store}", err=True)


def _manage(store: Store, export: Path | None, forget: int | None, close: bool, reopen: bool) -> None:
    if forget is not None:
        if store.rater(forget) is None:
            raise InvalidOption(f"There is no rater {forget}: they are numbered from 1 to {len(store.raters())}.")
        count = store.forget(forget)
        typer.echo(f"Deleted: {count} answers of rater {forget}. Files that were exported earlier still contain them.")
    if close or reopen:
        store.set_closed(close)
        typer.echo("Closed: no more answers are accepted." if close else "Open: answers are accepted again.")
    if export is not None:
        from humor_env.experiments.arena import exports

        for path in exports.write(store, export):
            typer.echo(str(path))


def _tokens(raters: str, share: bool) -> list[str] | int:
    """How many tokens to make, or the tokens in a file: letters, digits, - and _, long enough not to be guessed."""
    if raters.isascii() and raters.isdecimal():
        if not 1 <= int(raters) <= 1000:
            raise InvalidOption(f"--raters is from 1 to 1000, or a file; found {raters}.")
        return int(raters)
    lines = [line.strip() for line in read_text(raters).splitlines()]
    tokens = [line for line in lines if line and not line.startswith("#")]
    least = 16 if share else 4
    wrong = next(
        (t for t in tokens if len(t) < least or not t.isascii() or not t.replace("-", "a").replace("_", "a").isalnum()),
        None,
    )
    if wrong is not None or not tokens:
        raise InvalidOption(
            f"{raters}: expected one token per line, each of at least {least} letters, digits, - or _; "
            + (f"line {lines.index(wrong) + 1} is not a token." if wrong is not None else "there is none.")
        )
    if len(set(tokens)) < len(tokens):
        raise InvalidOption(f"{raters}: the same token appears twice; each rater needs their own.")
    return tokens


def _shown_host(host: str) -> str:
    import socket

    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _print_links(arena: Arena, base: str, share: bool, tokens: list[str]) -> None:
    """Print the links, once, to standard output; tokens are shown nowhere else."""
    from humor_env.experiments.arena.server import links

    raters, results = links(arena, base, tokens)
    for id, link in raters:
        typer.echo(f"Rater {id:<4} {link}")
    typer.echo(f"Results    {results}")
    if share:
        typer.echo(
            "Shared: anyone who has a link and can reach this machine can use it, and the connection is not encrypted. "
            "Meant for a lab or a class, not for the open internet.",
            err=True,
        )
    typer.echo("Stop with Ctrl-C; answers are kept.", err=True)
