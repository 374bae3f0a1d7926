"""The HTTP API and the page, as an ASGI application.

A photo is the body of its request, so that nothing of it is written to a disk, a page of another
site cannot send one without being asked for leave first, and no name, path or address in a request
is ever opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter as Counts
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

import regard
from regard.apps.pages import with_commons
from regard.apps.serve import Limits, schema
from regard.apps.serve.batching import Batcher, QueueFullError
from regard.captioner import AnyCaptioner, PhotoCaption
from regard.describe import Decoding
from regard.errors import ConfigError, PhotoError
from regard.images import open_photo

TYPES = (
    "image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "image/avif",
    "image/heic", "image/heif", "image/x-portable-pixmap", "application/octet-stream",
)  # fmt: skip
"""Types of bodies that are looked at. What a photo is, its first bytes decide."""

_STATUS = {"too large": 413, "not a photo": 415, "HEIC without pillow-heif": 415}
"""Of photos that cannot be opened, by their reason; of others 422."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


class Problem(Exception):
    """An answer other than captions."""

    def __init__(self, status: int, code: str, message: str, *, wait: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.wait = status, code, message, wait


def build_application(
    captioners: Mapping[str, AnyCaptioner],
    limits: Limits | None = None,
    *,
    hosts: Sequence[str] = ("localhost", "127.0.0.1", "[::1]"),
) -> FastAPI:
    """The application.

    Args:
        captioners: by the name that clients know them by; the first is the usual one.
        limits: of what clients may ask.
        hosts: names that a browser may know the server by; ``*`` is any.
    """
    limits = limits or Limits()
    measured = _Measured()
    batchers = {
        name: Batcher(one, most=limits.batch, room=limits.queue, on_batch=measured.batch.observe)
        for name, one in captioners.items()
    }
    measured.watch(batchers)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for batcher in batchers.values():
            await anyio.to_thread.run_sync(batcher.close)

    app = FastAPI(
        title="regard", version=regard.__version__, lifespan=lifespan,
        summary="Captions of photos, and where each word looked.",
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.middleware("http")(_with_headers(measured))
    _answer_problems(app)
    desk = _Desk(batchers, limits)
    page = _page()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.post(
        "/v1/captions",
        summary="Caption a photo",
        responses={
            status: {"model": schema.Failed, "description": said}
            for status, said in {
                400: "The request is broken.",
                408: "The photo did not arrive in time.",
                413: "The photo has too many bytes or pixels.",
                415: "That is no photo of a known format.",
                422: "The photo is damaged, or a setting is out of range.",
                429: "This client has too many requests under way.",
                503: "The server is busy, or the caption took too long.",
            }.items()
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "The photo's file.",
                "content": {
                    kind: {"schema": {"type": "string", "format": "binary"}} for kind in TYPES
                },
            }
        },
    )
    async def captions(
        request: Request, settings: Annotated[schema.Settings, Query()]
    ) -> schema.Captions:
        return await desk.caption(request, settings)

    @app.get("/health", summary="Whether the server works, and its models",
             responses={503: {"model": schema.Failed, "description": "It does not."}})  # fmt: skip
    async def health() -> schema.Health:
        if not all(batcher.alive for batcher in batchers.values()):
            raise Problem(503, "stopped", "The server has stopped captioning. Start it again.")
        return schema.Health(
            status="ok",
            version=regard.__version__,
            models=[
                schema.Model(name=name, gaze=one.no_gaze is None)
                for name, one in captioners.items()
            ],
        )

    @app.get("/metrics", response_class=PlainTextResponse, summary="For Prometheus")
    async def metrics() -> Response:
        return PlainTextResponse(generate_latest(measured.registry))

    return app


class _Desk:
    """Where photos are taken in, and captions handed out."""

    def __init__(self, batchers: Mapping[str, Batcher], limits: Limits) -> None:
        self._batchers, self._limits = batchers, limits
        self._under_way: Counts[str] = Counts()
        self._opening = anyio.CapacityLimiter(2)  # photos that are decoded at a time

    async def caption(self, request: Request, settings: schema.Settings) -> schema.Captions:
        client = request.client.host if request.client is not None else ""
        if self._under_way[client] >= self._limits.per_client:
            raise Problem(
                429, "too_many_requests",
                f"You have {self._limits.per_client} requests under way. Wait for one to end.",
                wait=1,
            )  # fmt: skip
        self._under_way[client] += 1
        try:
            return await self._caption(request, settings)
        finally:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]

    async def _caption(self, request: Request, settings: schema.Settings) -> schema.Captions:
        name = settings.model or next(iter(self._batchers))
        if name not in self._batchers:
            raise Problem(
                422, "unknown_model",
                f"There is no model {name!r} here. There is {', '.join(self._batchers)}.",
            )  # fmt: skip
        batcher = self._batchers[name]
        try:
            decoding = settings.decoding()
        except ConfigError as error:
            raise Problem(422, "settings", str(error)) from error
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in TYPES:
            raise Problem(
                415, "not_a_photo",
                f"The body's type is {kind or 'not given'}. Send the photo's file itself, as "
                f"{', '.join(TYPES[:4])} or another of the types in /openapi.json.",
            )  # fmt: skip
        photo = await self._read(request)
        found = await self._describe(batcher, photo, decoding)
        return schema.captions(name, found, count=settings.count, gaze=settings.gaze)

    async def _read(self, request: Request) -> bytes:
        """The body, as long as it is not too long."""
        most = int(self._limits.megabytes * 1e6)
        too_large = Problem(
            413, "too_large",
            f"The file has more than {self._limits.megabytes:g} MB, which is the most. Send a "
            "smaller copy: captions need no more than 1,000 pixels a side.",
        )  # fmt: skip
        with contextlib.suppress(ValueError):
            if int(request.headers.get("content-length", "0")) > most:
                raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise Problem(
                408, "too_slow", f"The photo did not arrive within {self._limits.seconds:g} s."
            ) from None
        return bytes(body)

    async def _describe(self, batcher: Batcher, photo: bytes, decoding: Decoding) -> PhotoCaption:
        most = int(self._limits.megapixels * 1e6)
        captioner = batcher.captioner
        try:
            prepared = await anyio.to_thread.run_sync(
                lambda: captioner.prepare(open_photo(photo, max_pixels=most)),
                limiter=self._opening,
            )
            future = asyncio.wrap_future(batcher.submit(prepared, decoding))
            async with asyncio.timeout(self._limits.seconds):
                return await future
        except PhotoError as error:
            status = _STATUS.get(error.reason, 422)
            code = {413: "too_large", 415: "not_a_photo"}.get(status, "damaged")
            raise Problem(status, code, str(error)) from error
        except ConfigError as error:
            raise Problem(422, "settings", str(error)) from error
        except QueueFullError:
            raise Problem(
                503, "busy", "The server has as many photos as it can take. Try again soon.", wait=2
            ) from None
        except TimeoutError:
            raise Problem(
                503, "too_slow", f"There was no caption within {self._limits.seconds:g} s.", wait=5
            ) from None


class _Measured:
    """Figures for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "regard_requests", "Requests, by path and status.", ["path", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "regard_request_seconds", "Seconds from request to answer.", ["path"],
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )  # fmt: skip
        self.batch = Histogram(
            "regard_batch_photos", "Photos that were captioned together.",
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry,
        )  # fmt: skip
        self._waiting = Gauge(
            "regard_waiting_photos", "Photos that wait.", ["model"], registry=self.registry
        )

    def watch(self, batchers: Mapping[str, Batcher]) -> None:
        """Show how many photos wait for each model."""
        for name, batcher in batchers.items():
            gauge = self._waiting.labels(model=name)
            gauge.set_function(lambda one=batcher: one.waiting)  # type: ignore[misc]


_PATHS = {"/", "/v1/captions", "/health", "/metrics", "/openapi.json"}


def _with_headers(measured: _Measured) -> Callable[..., Awaitable[Response]]:
    async def answer(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        response = await go_on(request)
        path = request.url.path if request.url.path in _PATHS else "other"
        measured.requests.labels(path=path, status=str(response.status_code)).inc()
        measured.seconds.labels(path=path).observe(time.perf_counter() - began)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    return answer


def _answer_problems(app: FastAPI) -> None:
    """Every error is JSON of one form."""

    def failed(
        status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> JSONResponse:
        content = schema.Failed(error=schema.Problem(code=code, message=message)).model_dump()
        return JSONResponse(content, status, headers=dict(headers or {}))

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
        wait = {} if error.wait is None else {"Retry-After": str(error.wait)}
        return failed(error.status, error.code, error.message, wait)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(
            f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg'][:1].lower()}{one['msg'][1:]}"
            for one in error.errors()
        )
        return failed(422, "settings", f"There are problems with the settings: {said}.")

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
        return failed(error.status_code, code, f"{error.detail}.", error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return failed(500, "internal", "Something went wrong here. It is in the server's log.")


def _page() -> str:
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return with_commons(template.replace("REGARD-VERSION", regard.__version__))


def serve(app: FastAPI, *, host: str, port: int, on_start: Callable[[str], Any]) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: the address cannot be had.
    """
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened at: {error.strerror or error}. Give another --port "
            "or --host; --port 0 takes one that is free."
        ) from error
    shown = f"[{host}]" if ":" in host else host
    on_start(f"http://{shown}:{listening.getsockname()[1]}/")
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30,
        limit_concurrency=None, h11_max_incomplete_event_size=64 * 1024,
    )  # fmt: skip
    with contextlib.closing(listening):
        uvicorn.Server(config).run(sockets=[listening])
