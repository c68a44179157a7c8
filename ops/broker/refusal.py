"""Refusals: the response of any request with one error code in every place where its schema has one.

A response mirrors its request (topics -> partitions -> error), so the items that a client waits for are all there. Source: the message
schemas that kafka-python carries.
"""

from typing import Any

from ops.broker.codes import ErrorCode
from ops.broker.versions import response_class


def refuse(api_key: int, request: Any, code: ErrorCode, message: str) -> Any:
    """The response to ``request`` in which everything failed with ``code``."""
    response = response_class(api_key)
    values = _mirror(response, request, code, message)
    return response(version=request.API_VERSION, **values)


def _mirror(schema: Any, request: Any, code: ErrorCode, message: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in schema.fields.items():
        if name.endswith("error_code"):
            values[name] = int(code)
        elif name.endswith("error_message"):
            values[name] = message
        elif field.is_struct_array():
            values[name] = _mirror_items(field.data_class, request, code, message)
        elif not field.is_array() and not field.is_struct():
            values[name] = _same(name, field, request)
    return values


def _mirror_items(item_schema: Any, request: Any, code: ErrorCode, message: str) -> list[Any]:
    return [item_schema(**_mirror(item_schema, item, code, message)) for item in _first_list(request)]


def _first_list(request: Any) -> list[Any]:
    """The items that the request is about: its first array; a request's plain value stands for itself."""
    if not hasattr(request, "fields"):
        return []
    arrays = (getattr(request, name) for name, field in request.fields.items() if field.is_array() or field.is_struct_array())
    return next((items for items in arrays if items), [])


def _same(name: str, field: Any, request: Any) -> Any:
    """The request's own value where it has a field of that name (ids, names, indexes), else the schema's default."""
    if hasattr(request, "fields"):
        return getattr(request, name, field.default)
    kinds = {"string": str, "int32": int, "int64": int}
    return request if isinstance(request, kinds.get(field.type_str, ())) else field.default
