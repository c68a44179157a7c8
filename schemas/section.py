"""A section of the settings: what all of them have in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of ``headrace.toml``: frozen, closed, each field documented by the line under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
