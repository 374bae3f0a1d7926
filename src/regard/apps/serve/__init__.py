"""`regard serve`: a web page, and the HTTP API that it uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from regard.errors import ConfigError, MissingExtraError


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server lets clients ask of it."""

    megabytes: float = 20.0
    """Of a photo's file, in 10^6 bytes."""
    megapixels: float = 50.0
    """Of a photo, in 10^6 pixels."""
    seconds: float = 30.0
    """For an upload, and for a caption."""
    queue: int = 64
    """Photos that wait for a model."""
    per_client: int = 16
    """Requests of one address at a time."""
    batch: int = 16
    """Photos that are captioned together."""


def start(
    models: Sequence[str],
    limits: Limits,
    *,
    host: str,
    port: int,
    names: Sequence[str],
    revision: str | None,
    encoder: str | None,
    device: str,
    say: Callable[[str], None],
) -> None:
    """Load captioners and serve them until interrupted.

    Args:
        models: each a source of :func:`regard.captioner.load`, perhaps after ``NAME=``.
        limits: of what clients may ask.
        host: address to listen at.
        port: 0 is a free one.
        names: that browsers know the server by, beside those of this machine itself; where other
            machines are let in and none is given, any name.
        revision: of models of the hub.
        encoder: where the encoders' weights are.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        say: is told the address.

    Raises:
        ConfigError: two models have one name, or the address cannot be had.
        MissingExtraError: the extra ``web`` is not installed.
        ModelError: a model cannot be loaded.
    """
    try:
        from regard.apps.serve.application import build_application, serve
    except ImportError as error:
        if (error.name or "").startswith("regard"):
            raise
        raise MissingExtraError("Serving", "web") from error
    from regard.captioner import load

    sources: dict[str, str] = {}
    for given in models:
        name, source = _named(given)
        if name in sources:
            raise ConfigError(
                f"Two models are called {name!r}. Name them: --model first={sources[name]} "
                f"--model second={source}"
            )
        sources[name] = source
    captioners = {
        name: load(source, revision=revision, encoder=encoder, device=device)
        for name, source in sources.items()
    }
    own = ("localhost", "127.0.0.1", "[::1]")
    open_to_all = host not in ("127.0.0.1", "::1", "localhost") and not names
    app = build_application(captioners, limits, hosts=("*",) if open_to_all else (*own, *names))
    serve(app, host=host, port=port, on_start=lambda url: say(f"regard is at {url}"))


def _named(given: str) -> tuple[str, str]:
    """``NAME=MODEL``, or a model and the last part of what it is called."""
    name, equals, source = given.partition("=")
    if equals and name and "/" not in name:
        return name, source
    parts = [part for part in given.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if len(parts) > 1 and parts[-1] == "model":
        parts.pop()
    return (parts or [given])[-1], given
