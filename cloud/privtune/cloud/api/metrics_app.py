"""The application of the listener for Prometheus: one route, on a port of its own, without keys."""

from __future__ import annotations

from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from privtune.cloud.api.error_responses import install_error_handlers
from privtune.cloud.api.middleware import Envelope


def create_metrics_app(registry: CollectorRegistry) -> FastAPI:
    """`GET /metrics` and nothing else. What the registry collects is read on a thread, so it may ask the database."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    install_error_handlers(app)
    app.add_middleware(Envelope, max_bytes=1024)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app
