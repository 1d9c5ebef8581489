"""What an adapter may cost before it is trusted."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that are checked before the matching work is done or memory is taken."""

    max_config_bytes: int = 1 << 20
    """Size of ``adapter_config.json``."""
    max_header_bytes: int = 1 << 20
    """Size of the safetensors header, which names every tensor."""
    max_tensors: int = 4096
    max_file_bytes: int = 2 << 30
    """Size of ``adapter_model.safetensors``. Ingest holds the file twice in memory for a moment."""
    max_rank: int = 512
    max_patterns: int = 1024
    """Entries in each of target_modules, exclude_modules, layers_pattern, rank_pattern and alpha_pattern."""
    max_regexes: int = 64
    """Of those entries, the ones that are more than a plain module name: each is matched against every module."""
    max_regex_program: int = 4096
    """RE2 instructions of all regular expressions in one field together: bounds the time to match them."""
    max_pattern_chars: int = 4096
    """Length of one regular expression or module name."""
    max_abs_scale: float = 1e6
    """Above this, float16 and bfloat16 products overflow: the adapter is broken, whatever made it."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name} must be positive, got {getattr(self, field.name)}")
