"""What goes wrong, as a document: our own errors by their class, FastAPI's and Starlette's in our words."""

from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tinylora.errors import DataError, RefusedError, SettingError, StorageError
from tinylora_coordinator.dashboard.answers import Refusal, refuse

_LONGEST = 300


def add_failures(app: FastAPI) -> None:
    """Let the app answer every failure with a `Failure`."""
    for kind, status, error in (
        (SettingError, 422, "setting"),
        (DataError, 422, "data"),
        (RefusedError, 409, "refused"),
        (StorageError, 503, "storage"),
    ):
        app.add_exception_handler(kind, _foreseen(status, error))
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)


def _foreseen(status: int, error: str):
    async def tell(request: Request, raised: Exception) -> Response:
        return refuse(Refusal(status, error, _short(str(raised))))

    return tell


async def _http(request: Request, raised: Exception) -> Response:
    if isinstance(raised, Refusal):
        return refuse(raised)
    assert isinstance(raised, HTTPException)
    if raised.status_code == 400:  # FastAPI's for bytes that are no text
        return refuse(Refusal(422, "invalid", "the body is no JSON"))
    error, reason = _WORDS.get(raised.status_code, ("request", HTTPStatus(raised.status_code).phrase))
    return refuse(Refusal(raised.status_code, error, reason, raised.headers))


_WORDS = {
    404: ("not_found", "there is nothing at this address"),
    405: ("method", "this address is not asked this way"),
}


async def _invalid(request: Request, raised: Exception) -> Response:
    """The first fault alone, and nothing of what was sent."""
    assert isinstance(raised, RequestValidationError)
    fault = raised.errors()[0]
    place = ".".join(str(part) for part in fault["loc"] if isinstance(part, str | int))
    return refuse(Refusal(422, "invalid", _short(f"{place}: {fault['msg']}")))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
