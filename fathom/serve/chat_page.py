"""The chat page: plain files that the server hands out as they are."""

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "page"


def add_page(app: FastAPI) -> None:
    """Serve the page at `/`, its files under `/page/`."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:  # pyright: ignore[reportUnusedFunction]
        """The page."""
        return FileResponse(FOLDER / "index.html", media_type="text/html")

    app.mount("/page", StaticFiles(directory=FOLDER))
