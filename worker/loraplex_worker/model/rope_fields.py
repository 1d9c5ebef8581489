"""The rotary fields of a ``config.json``, in the old and the new spelling, checked and closed."""

from typing import Any

from loraplex_contract.errors import FailedPrecondition
from loraplex_worker.model.rope import RopeConfig

_FIELDS_BY_TYPE = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset(
        [
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ]
    ),
}
_REQUIRED_BY_TYPE = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor"}),
}


def read_rope(fields: dict[str, Any], max_position_embeddings: int) -> RopeConfig:
    """Rotation of a model from its config fields.

    Raises:
        FailedPrecondition: an unknown rope_type, an unknown or missing parameter, or two contradicting spellings.
    """
    given = _parameters(fields)
    rope_type = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    theta = given.pop("rope_theta", None) or fields.get("rope_theta") or 10000.0
    partial = given.pop("partial_rotary_factor", None) or fields.get("partial_rotary_factor") or 1.0
    if rope_type not in _FIELDS_BY_TYPE:
        raise _refused(f"rope_type is {rope_type!r}; known: {sorted(_FIELDS_BY_TYPE)}")
    if partial != 1.0:
        raise _refused(f"partial_rotary_factor is {partial!r}; only 1.0 is known")
    values = {name: value for name, value in given.items() if value is not None}
    _check_names(rope_type, values)
    if "original_max_position_embeddings" in _FIELDS_BY_TYPE[rope_type]:
        original = fields.get("original_max_position_embeddings")
        values.setdefault("original_max_position_embeddings", max_position_embeddings)
        if original is not None:
            values["original_max_position_embeddings"] = original
    return RopeConfig(rope_type=rope_type, theta=_number("rope_theta", theta), **_checked(values))


def _refused(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="BASE_MODEL_UNSUPPORTED")


def _parameters(fields: dict[str, Any]) -> dict[str, Any]:
    old, new = fields.get("rope_scaling"), fields.get("rope_parameters")
    if old and new and old != new:
        raise _refused("rope_scaling and rope_parameters are both given and differ; keep one")
    given = old or new or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise _refused("rope parameters must be one flat object; a rotation per layer type is not known")
    return dict(given)


def _check_names(rope_type: str, values: dict[str, Any]) -> None:
    unknown = sorted(values.keys() - _FIELDS_BY_TYPE[rope_type])
    missing = sorted(_REQUIRED_BY_TYPE[rope_type] - values.keys())
    if unknown or missing:
        raise _refused(f"rope parameters of rope_type {rope_type!r}: not understood {unknown}, missing {missing}")


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name == "truncate":
            if not isinstance(value, bool):
                raise _refused(f"truncate is {value!r}; it must be true or false")
            checked[name] = value
        else:
            checked[name] = _number(name, value)
    return checked


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise _refused(f"{name} is {value!r}; it must be a positive number")
    return value
