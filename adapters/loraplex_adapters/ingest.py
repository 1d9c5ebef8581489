"""From a PEFT folder to a stored version, with a report of exactly what will be applied."""

import dataclasses
from pathlib import Path

from loraplex_adapters.base_shape import BaseShape
from loraplex_adapters.digest import adapter_digest, payload_digest
from loraplex_adapters.limits import Limits
from loraplex_adapters.module import Module
from loraplex_adapters.peft_folder import ParsedAdapter, parse_peft_folder
from loraplex_adapters.spec import AdapterSpec, LoraSite, saved_name, site_key, tensor_names
from loraplex_adapters.store import AdapterStore
from loraplex_contract.errors import InvalidArgument


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """What is applied to one module of the base model."""

    key: str
    """As ``site_key``: ``layers.3.q_proj``, ``embed_tokens`` or ``lm_head``."""
    rank: int
    """0: the adapter brings the whole weight."""
    scale: float
    dtype: str
    num_bytes: int
    """Of all its tensors together."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """The answer to a registration."""

    spec: AdapterSpec
    sites: tuple[SiteReport, ...]
    source_sha256: str
    """Of the adapter_model.safetensors that was read."""
    notes: tuple[str, ...]
    """Sentences about what was left out or looks unintended; nothing here changes the result."""
    is_stored: bool
    """False after ``validate_only``."""


def ingest(
    folder: Path,
    *,
    base: BaseShape,
    store: AdapterStore,
    limits: Limits,
    validate_only: bool = False,
    expected_digest: str = "",
) -> IngestReport:
    """Check a PEFT folder against the base model, compute its digest and store it.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        validate_only: check and report, store nothing.
        expected_digest: if set, a version with another digest is refused and not stored.

    Raises:
        InvalidArgument: see ``parse_peft_folder``; another digest than expected (DIGEST_MISMATCH).
        FailedPrecondition: see ``parse_peft_folder``.
    """
    parsed = parse_peft_folder(folder, base, limits)
    spec = _spec_of(parsed)
    if expected_digest and spec.digest != expected_digest:
        raise InvalidArgument(
            f"expected_digest: the source has digest {spec.digest}, not {expected_digest}",
            reason="DIGEST_MISMATCH",
            metadata={"digest": spec.digest, "expected": expected_digest},
        )
    if not validate_only:
        store.put(spec, parsed.tensors)
    return IngestReport(
        spec=spec,
        sites=(
            *(_site_report(site, parsed) for site in spec.sites),
            *(_saved_report(module, parsed) for module in spec.saved),
        ),
        source_sha256=parsed.source_sha256,
        notes=parsed.notes,
        is_stored=not validate_only,
    )


def _spec_of(parsed: ParsedAdapter) -> AdapterSpec:
    kind = parsed.sites[0].kind
    num_bytes = sum(len(tensor.data) for tensor in parsed.tensors.values())
    digest = adapter_digest(
        kind=kind,
        dtype=parsed.dtype,
        num_bytes=num_bytes,
        sites=parsed.sites,
        payload=payload_digest(parsed.tensors),
    )
    return AdapterSpec(
        digest=digest,
        kind=kind,
        sites=parsed.sites,
        dtype=parsed.dtype,
        num_bytes=num_bytes,
        max_rank=max(site.rank for site in parsed.sites),
        base_model_name=parsed.base_model_name,
        saved=parsed.saved,
    )


def _site_report(site: LoraSite, parsed: ParsedAdapter) -> SiteReport:
    num_bytes = sum(len(parsed.tensors[name].data) for name in tensor_names(site))
    return SiteReport(key=site_key(site), rank=site.rank, scale=site.scale, dtype=parsed.dtype, num_bytes=num_bytes)


def _saved_report(module: Module, parsed: ParsedAdapter) -> SiteReport:
    num_bytes = len(parsed.tensors[saved_name(module)].data)
    return SiteReport(key=module.value, rank=0, scale=1.0, dtype=parsed.dtype, num_bytes=num_bytes)
