"""What a program sends: a JSON object with the arguments of a function; anything else is refused in words."""

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.utils import get_function_params
from starlette.requests import Request
from starlette.responses import JSONResponse

from diffusers_xai.app.session import SERVER_MESSAGE


NAMED = "/call/v2/"  # where arguments have names
INFO = "/gradio_api/info describes the endpoints."
NO_JSON = f'Expected a request in JSON, such as {{"data": ["Smiling"]}}. {INFO}'
NO_LIST = f"data: expected the list of the arguments. {INFO}"
OTHERWISE = f"This request is not as it should be: a field is missing, or of another kind. {INFO}"


class RequestError(ValueError):
    """A request that is refused; the text is for whoever sent it."""

    def __init__(self, text: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST):
        super().__init__(text)
        self.status = status


def read(body: bytes, hook: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """A request from its JSON.

    Args:
        body (`bytes`): What was sent.
        hook (`Callable`, *optional*): Is given every JSON object, and gives what stands in its place.

    Raises:
        RequestError: If it is no JSON object.
    """
    try:
        request = json.loads(body, object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise RequestError(NO_JSON) from error
    if not isinstance(request, dict):
        raise RequestError(NO_JSON)
    return request


def called(route: str, request: Mapping[str, Any], demo: gr.Blocks) -> dict[str, Any]:
    """A call of a function of the page or the API, its arguments in their order.

    Args:
        route (`str`): Such as `/call/plan`, `/run/predict`, `/queue/join`; under `/call/v2` the arguments have names.
        request (`Mapping`): What `read` gives.
        demo (`gradio.Blocks`): Whose functions they are.

    Raises:
        RequestError: If there is no such function, or its arguments are too few, or of other names.
    """
    name, number = route.rpartition("/")[2], request.get("fn_index")
    public = {fn.api_name: fn for fn in demo.fns.values() if fn.api_visibility == "public"}
    by_name = route.startswith(NAMED)
    if route.startswith("/call/") or number is None:
        function = public.get(name)
    else:
        function = demo.fns.get(number) if isinstance(number, int) and not isinstance(number, bool) else None
    if function is None:
        available = f"Available: {', '.join(map(str, public))}."
        raise RequestError(f"Expected the name of an endpoint. {available} {INFO}", HTTPStatus.NOT_FOUND)
    if by_name:
        return {"data": _in_order(request, function)}
    data = request.get("data")
    if not isinstance(data, list):
        raise RequestError(NO_LIST)
    least = sum(not block.skip_api for block in function.inputs)
    if len(data) < least:
        raise RequestError(f"data: expected a list of {least} arguments, got {len(data)}. {INFO}")
    return dict(request)


def _in_order(request: Mapping[str, Any], function: Any) -> list[Any]:
    defaults = {name: default for name, _, default, _ in get_function_params(function.fn)}
    if not set(request) <= set(defaults):
        raise RequestError(f"Expected arguments out of {', '.join(defaults)}. {INFO}")
    return [request.get(name, default) for name, default in defaults.items()]


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": OTHERWISE, "error": OTHERWISE}, HTTPStatus.UNPROCESSABLE_ENTITY)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": SERVER_MESSAGE, "error": SERVER_MESSAGE}, HTTPStatus.INTERNAL_SERVER_ERROR)


# What FastAPI would tell in the words of its own libraries.
HANDLERS = {RequestValidationError: _malformed, Exception: _failed}
