"""How every process gets its settings: defaults < TOML file < environment < flags, checked once, unknown keys refused.

A process declares one subclass of ``ProcessSettings`` and calls ``load``. Its section in the TOML file and its
environment prefix are its name: ``[scheduler] listen = "..."`` and ``LORAPLEX_SCHEDULER__LISTEN``.
"""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

CONFIG_VARIABLE = "LORAPLEX_CONFIG"


class SettingsError(ValueError):
    """Names the key, what was given, and what is known."""


class ProcessSettings(BaseModel):
    """Base of the settings of one process. Field docstrings are the help texts of the flags."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    process: ClassVar[str]
    """Name of the section and of the environment prefix, e.g. ``scheduler``."""

    @classmethod
    def load(cls, flags: Sequence[str] = ()) -> Self:
        """Reads all four sources.

        Args:
            flags: the command line after the program's name, as ``--kebab-case value``.

        Raises:
            SettingsError: for an unknown key or a value out of bounds, naming it.
            SystemExit: after ``--help``, and for a flag that does not exist.
        """
        given = {**_from_toml(cls), **_from_environment(cls), **_from_flags(cls, flags)}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SettingsError(_explain(cls, error)) from None


def _from_toml(cls: type[ProcessSettings]) -> dict[str, Any]:
    path = os.environ.get(CONFIG_VARIABLE)
    if path is None:
        return {}
    try:
        section = tomllib.loads(Path(path).read_text()).get(cls.process, {})
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{CONFIG_VARIABLE}={path}: {error}") from None
    return dict(section)


def _from_environment(cls: type[ProcessSettings]) -> dict[str, Any]:
    prefix = f"LORAPLEX_{cls.process.upper()}__"
    return {name[len(prefix) :].lower(): value for name, value in os.environ.items() if name.startswith(prefix)}


def _from_flags(cls: type[ProcessSettings], flags: Sequence[str]) -> dict[str, Any]:
    """Only the flags that were given, so that the other sources show through."""

    class Flags(BaseSettings):
        model_config = SettingsConfigDict(extra="ignore", cli_kebab_case=True, cli_prog_name=f"loraplex {cls.process}")

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *sources: Any, **more: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return ()

    source: CliSettingsSource[Any] = CliSettingsSource(
        _as_settings(cls, Flags), cli_parse_args=list(flags), cli_hide_none_type=True
    )
    return {key: value for key, value in source().items() if key in cls.model_fields}


def _as_settings(cls: type[ProcessSettings], base: type[BaseSettings]) -> type[BaseSettings]:
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in cls.model_fields.items()}
    namespace = {"__annotations__": {name: kind for name, (kind, _) in fields.items()}, "__module__": cls.__module__}
    namespace.update({name: field for name, (_, field) in fields.items()})
    namespace["__doc__"] = cls.__doc__ or ""
    return type(cls.__name__, (base,), namespace)


def _explain(cls: type[ProcessSettings], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(settings)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown {cls.process} setting {key!r}; known: {', '.join(sorted(cls.model_fields))}")
        else:
            lines.append(f"{cls.process} setting {key!r} = {problem['input']!r}: {problem['msg']}")
    return "; ".join(lines)
