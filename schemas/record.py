"""The base of everything that is written as JSON and read again: frozen, closed, a line under each field."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen, closed JSON object; a line under each field says what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")
