"""A damaged, lying or unfit adapter is refused with a reason and the name of what is wrong."""

import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.adapters.adapter_folder import BASE, Q_A, Q_B, config, file_bytes, lora_tensors, matrix, write_folder

from loraplex_adapters.limits import Limits
from loraplex_adapters.module import Module
from loraplex_adapters.peft_folder import parse_peft_folder
from loraplex_adapters.tensor import TensorBytes
from loraplex_contract.errors import FailedPrecondition, InvalidArgument, LoraplexError


def _refusal(folder: Path, *, limits: Limits | None = None) -> LoraplexError:
    with pytest.raises((InvalidArgument, FailedPrecondition)) as caught:
        parse_peft_folder(folder, BASE, limits or Limits())
    assert str(folder) not in caught.value.message
    assert len(caught.value.message) < 1000
    return caught.value


def _refusal_of_tensors(folder: Path, tensors: dict[str, TensorBytes], **changes: object) -> LoraplexError:
    return _refusal(write_folder(folder, tensors=tensors, document=config(**changes)))


def _refusal_of_bytes(folder: Path, data: bytes) -> LoraplexError:
    (write_folder(folder) / "adapter_model.safetensors").write_bytes(data)
    return _refusal(folder)


def _raw_file(header: dict[str, object], payload: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


def test_the_untouched_folder_is_accepted(tmp_path):
    assert len(parse_peft_folder(write_folder(tmp_path), BASE, Limits()).sites) == 2


def test_a_file_cut_anywhere_in_its_header_or_at_any_tensor_edge_is_refused(tmp_path):
    data = file_bytes(lora_tensors(Module.Q_PROJ))
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    edges = range(header_end, len(data), 64)
    for cut in [*range(0, header_end, 5), header_end - 1, *edges, len(data) - 1]:
        assert _refusal_of_bytes(tmp_path, data[:cut]).reason == "ADAPTER_MALFORMED"


def test_trailing_bytes_are_refused(tmp_path):
    data = file_bytes(lora_tensors(Module.Q_PROJ))
    assert _refusal_of_bytes(tmp_path, data + b"\0").reason == "ADAPTER_MALFORMED"


@pytest.mark.parametrize("length", [0, 1, 7, 1 << 20, (1 << 20) + 1, 1 << 31, 1 << 63, (1 << 64) - 2])
def test_a_lie_about_the_header_length_is_refused_at_once(tmp_path, length):
    data = struct.pack("<Q", length) + file_bytes(lora_tensors(Module.Q_PROJ))[8:]
    started = time.perf_counter()
    assert _refusal_of_bytes(tmp_path, data).reason in ("ADAPTER_MALFORMED", "ADAPTER_FORMAT")
    assert time.perf_counter() - started < 1.0


def test_a_million_empty_tensors_are_refused_before_they_are_parsed(tmp_path):
    entry = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(entry % index for index in range(1_000_000)) + b"}"
    started = time.perf_counter()
    refusal = _refusal_of_bytes(tmp_path, struct.pack("<Q", len(header)) + header)
    assert "header" in refusal.message
    assert time.perf_counter() - started < 1.0


def test_more_tensors_than_the_limit_are_refused(tmp_path):
    header: dict[str, object] = {
        f"t{index}": {"dtype": "F32", "shape": [0, 0], "data_offsets": [0, 0]} for index in range(5000)
    }
    assert "5000 tensors" in _refusal_of_bytes(tmp_path, _raw_file(header)).message


def test_a_file_over_the_size_limit_is_refused_unread(tmp_path):
    assert "at most 100 " in _refusal(write_folder(tmp_path), limits=Limits(max_file_bytes=100)).message


def test_a_config_over_the_size_limit_is_refused(tmp_path):
    folder = write_folder(tmp_path, document=config(revision="x" * 3000))
    assert "adapter_config.json" in _refusal(folder, limits=Limits(max_config_bytes=2000)).message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    (write_folder(tmp_path) / name).unlink()
    refusal = _refusal(tmp_path)
    assert (refusal.reason, refusal.metadata) == ("SOURCE_NOT_FOUND", {"file": name})


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, name, kind):
    path = write_folder(tmp_path) / name
    path.rename(tmp_path / "elsewhere")
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(tmp_path / "elsewhere")
        case "folder":
            path.mkdir()
    refusal = _refusal(tmp_path)
    assert (refusal.reason, refusal.metadata) == ("ADAPTER_MALFORMED", {"file": name})


@pytest.mark.parametrize("folder", ["absent", "a file", "nul\0byte"])
def test_a_folder_that_is_none_is_not_found(tmp_path, folder):
    (tmp_path / "a file").write_text("")
    assert _refusal(tmp_path / folder).reason == "SOURCE_NOT_FOUND"


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_weights_are_refused_unopened(tmp_path, name):
    (write_folder(tmp_path) / "adapter_model.safetensors").unlink()
    os.mkfifo(tmp_path / name)  # opening it would block
    assert _refusal(tmp_path).reason == "ADAPTER_FORMAT"


@pytest.mark.parametrize("magic", [b"PK\x03\x04" + b"x" * 60, b"GGUF" + b"x" * 60, b"\x80\x02}q\x00." + b"x" * 60])
def test_another_format_under_the_safetensors_name_is_recognised(tmp_path, magic):
    assert _refusal_of_bytes(tmp_path, magic).reason == "ADAPTER_FORMAT"


@pytest.mark.parametrize("dtype", ["F64", "I8", "F8_E4M3", "BOOL", "I64"])
def test_another_dtype_is_refused_by_name(tmp_path, dtype):
    item = {"F64": 8, "I64": 8}.get(dtype, 1)
    header: dict[str, object] = {Q_A: {"dtype": dtype, "shape": [4, 16], "data_offsets": [0, 64 * item]}}
    refusal = _refusal_of_bytes(tmp_path, _raw_file(header, b"\0" * (64 * item)))
    assert refusal.reason == "ADAPTER_DTYPE_UNSUPPORTED"
    assert dtype in refusal.message


def test_a_tensor_of_absurd_rank_is_refused(tmp_path):
    header: dict[str, object] = {Q_A: {"dtype": "F32", "shape": [1] * 50_000, "data_offsets": [0, 4]}}
    assert "50000 dimensions" in _refusal_of_bytes(tmp_path, _raw_file(header, b"\0" * 4)).message


def _with(name: str, tensor: TensorBytes | None) -> dict[str, TensorBytes]:
    tensors = {key: value for key, value in lora_tensors(Module.Q_PROJ).items() if key != name}
    return tensors if tensor is None else {**tensors, name: tensor}


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("F32", 0x7FC00000), ("F32", 0xFF800000), ("F32", 0x7F800001), ("F16", 0x7C00), ("F16", 0xFE00), ("BF16", 0xFF80),
     ("BF16", 0x7FC0)],
)  # fmt: skip
def test_nan_and_infinity_are_refused_in_every_dtype(tmp_path, dtype, bits):
    kind = "<u4" if dtype == "F32" else "<u2"
    tensors = {
        name: TensorBytes(dtype, tensor.shape, np.ones(tensor.shape, kind).tobytes())
        for name, tensor in lora_tensors(Module.Q_PROJ).items()
    }
    values = np.ones((16, 4), kind)
    values[15, 3] = bits
    refusal = _refusal_of_tensors(tmp_path, {**tensors, Q_B: TensorBytes(dtype, (16, 4), values.tobytes())})
    assert (refusal.reason, refusal.metadata) == ("ADAPTER_NONFINITE", {"tensor": Q_B})


def test_the_largest_finite_numbers_are_accepted(tmp_path):
    for dtype, bits in (("F32", 0x7F7FFFFF), ("F16", 0x7BFF), ("BF16", 0x7F7F)):
        kind = "<u4" if dtype == "F32" else "<u2"
        tensors = {
            name: TensorBytes(dtype, tensor.shape, np.full(tensor.shape, bits, kind).tobytes())
            for name, tensor in lora_tensors(Module.Q_PROJ).items()
        }
        assert parse_peft_folder(write_folder(tmp_path / dtype, tensors=tensors), BASE, Limits()).dtype == dtype


@pytest.mark.parametrize(("missing", "there"), [(Q_A, Q_B), (Q_B, Q_A)])
def test_half_a_pair_is_refused_with_both_names(tmp_path, missing, there):
    refusal = _refusal_of_tensors(tmp_path, _with(missing, None))
    assert refusal.reason == "ADAPTER_MALFORMED"
    assert missing in refusal.message
    assert there in refusal.message


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        (Q_A, (5, 16), "ADAPTER_MALFORMED"),
        (Q_A, (0, 16), "ADAPTER_MALFORMED"),
        (Q_B, (16, 3), "ADAPTER_MALFORMED"),
        (Q_A, (16, 4), "ADAPTER_BASE_MISMATCH"),
        (Q_A, (4, 17), "ADAPTER_BASE_MISMATCH"),
        (Q_B, (12, 4), "ADAPTER_BASE_MISMATCH"),
    ],
)
def test_a_wrong_shape_is_refused_with_both_shapes(tmp_path, name, shape, reason):
    refusal = _refusal_of_tensors(tmp_path, _with(name, matrix(*shape)))
    assert refusal.reason == reason
    assert refusal.metadata == {"tensor": name}
    assert str(list(shape)) in refusal.message
    assert ("[4, 16]" if name == Q_A else "[16, 4]") in refusal.message


def test_a_selected_module_without_tensors_is_refused(tmp_path):
    refusal = _refusal_of_tensors(tmp_path, lora_tensors(Module.Q_PROJ), target_modules=["q_proj", "up_proj"])
    assert refusal.reason == "ADAPTER_MALFORMED"
    assert "up_proj" in refusal.message


def test_tensors_of_a_module_that_is_not_selected_are_refused(tmp_path):
    refusal = _refusal_of_tensors(tmp_path, lora_tensors(Module.Q_PROJ, Module.UP_PROJ))
    assert refusal.reason == "ADAPTER_MALFORMED"
    assert "up_proj" in refusal.message


def test_an_adapter_of_a_deeper_base_is_refused(tmp_path):
    name = Q_A.replace("layers.0", "layers.2")
    refusal = _refusal_of_tensors(tmp_path, {**lora_tensors(Module.Q_PROJ), name: matrix(4, 16)})
    assert refusal.reason == "ADAPTER_BASE_MISMATCH"
    assert "2 layers" in refusal.message


def test_an_adapter_of_a_shallower_base_is_refused(tmp_path):
    tensors = {name: tensor for name, tensor in lora_tensors(Module.Q_PROJ).items() if "layers.1." not in name}
    refusal = _refusal_of_tensors(tmp_path, tensors)
    assert refusal.reason == "ADAPTER_BASE_MISMATCH"
    assert "layer 1" in refusal.message


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("base_model.model.lm_head.modules_to_save.weight", "modules_to_save"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "trainable_token_indices"),
    ],
)
def test_a_tensor_of_an_unsupported_feature_is_refused_by_the_features_name(tmp_path, name, field):
    refusal = _refusal_of_tensors(tmp_path, {**lora_tensors(Module.Q_PROJ), name: matrix(4, 16)})
    assert (refusal.reason, refusal.metadata) == ("ADAPTER_FEATURE_UNSUPPORTED", {"field": field})


@pytest.mark.parametrize(("end", "field"), [("B.bias", "lora_bias"), ("magnitude_vector", "use_dora")])
def test_a_tensor_of_a_kind_that_the_config_does_not_switch_on_is_refused(tmp_path, end, field):
    name = Q_B.removesuffix("B.weight") + end
    refusal = _refusal_of_tensors(tmp_path, {**lora_tensors(Module.Q_PROJ), name: matrix(4, 16)})
    assert refusal.reason == "ADAPTER_MALFORMED"
    assert f"{field}, which the config does not switch on" in refusal.message


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "x" * 5000, Q_A.replace("A.weight", "A.default.weight"), "\x1b[31m"]
)
def test_a_name_that_peft_does_not_write_is_refused_and_quoted_safely(tmp_path, name):
    refusal = _refusal_of_tensors(tmp_path, {**lora_tensors(Module.Q_PROJ), name: matrix(4, 16)})
    assert refusal.reason == "ADAPTER_MALFORMED"
    assert "\x1b" not in refusal.message


def test_lora_on_another_module_is_refused(tmp_path):
    name = "base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight"
    refusal = _refusal_of_tensors(tmp_path, {**lora_tensors(Module.Q_PROJ), name: matrix(4, 16)})
    assert refusal.reason == "ADAPTER_MODULE_UNSUPPORTED"


def test_mixed_dtypes_are_refused_with_both_names(tmp_path):
    refusal = _refusal_of_tensors(tmp_path, _with(Q_B, TensorBytes("BF16", (16, 4), b"\0" * 128)))
    assert refusal.reason == "ADAPTER_DTYPE_UNSUPPORTED"
    assert Q_B in refusal.message


def test_an_adapter_of_zeros_is_accepted_with_a_note(tmp_path):
    zeros = TensorBytes("F32", (16, 4), b"\0\0\0\x80" * 64)  # minus zero
    tensors = {name: zeros if "lora_B" in name else t for name, t in lora_tensors(Module.Q_PROJ).items()}
    parsed = parse_peft_folder(write_folder(tmp_path, tensors=tensors), BASE, Limits())
    assert parsed.notes == ("A or B of every site is zero: the adapter changes nothing yet",)


_GOOD = file_bytes(lora_tensors(Module.Q_PROJ))


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, len(_GOOD) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_read_as_another_good_adapter(tmp_path_factory, position, byte):
    folder = write_folder(tmp_path_factory.mktemp("flip"))
    data = bytearray(_GOOD)
    data[position] = byte
    (folder / "adapter_model.safetensors").write_bytes(data)
    try:
        parsed = parse_peft_folder(folder, BASE, Limits())
    except LoraplexError:
        return
    assert {site.rank for site in parsed.sites} == {4}
