"""The error table: complete, the same in and out of band, and small enough for gRPC's trailers."""

import grpc
import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from loraplex_contract import errors, status


def leaves(cls: type[errors.LoraplexError]) -> list[type[errors.LoraplexError]]:
    subclasses = cls.__subclasses__()
    return [leaf for sub in subclasses for leaf in leaves(sub)] if subclasses else [cls]


LEAVES = leaves(errors.LoraplexError)


def test_the_table_has_every_leaf_of_the_error_tree_and_nothing_else():
    assert set(status.CODES) == set(LEAVES)


def test_no_two_errors_share_a_code():
    assert len(set(status.CODES.values())) == len(status.CODES)


def test_no_error_maps_to_ok_or_unknown():
    assert {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN}.isdisjoint(status.CODES.values())


def make(cls, message="it broke", **more):
    return cls(message, reason="SOME_REASON", **more)


def fields_of(error):
    return type(error), error.message, error.reason, error.metadata, error.violations, error.retry_delay_s


texts = st.text(max_size=40)
violations = st.lists(
    st.builds(lambda f, d: errors.FieldViolation(field=f, description=d), texts, texts), max_size=3
).map(tuple)


@given(
    cls=st.sampled_from(LEAVES),
    message=texts,
    metadata=st.dictionaries(texts, texts, max_size=3),
    violations=violations,
    delay_ms=st.none() | st.integers(0, 10**6),
)
def test_in_band_and_out_of_band_forms_carry_the_same_error(cls, message, metadata, violations, delay_ms):
    delay_s = None if delay_ms is None else delay_ms / 1000
    error = make(cls, message, metadata=metadata, violations=violations, retry_delay_s=delay_s)
    in_band = status.error_from_pb(status.error_to_pb(error))
    out_of_band = status.error_from_status(status.status_of(error))
    assert fields_of(in_band)[:5] == fields_of(error)[:5]
    assert fields_of(out_of_band) == fields_of(in_band)


@given(count=st.integers(0, 400), length=st.integers(0, 2000))
def test_a_status_never_outgrows_the_trailers(count, length):
    violation = errors.FieldViolation(field="f" * 50, description="d" * length)
    error = make(errors.InvalidArgument, "m" * length, violations=(violation,) * count)
    built = status.status_of(error)
    assert built.ByteSize() <= status.MAX_STATUS_BYTES
    assert status.error_from_status(built).reason == "SOME_REASON"


@given(count=st.integers(1, 400), length=st.integers(0, 2000))
def test_violations_that_do_not_fit_are_counted(count, length):
    violation = errors.FieldViolation(field="f" * 50, description="d" * length)
    sent = make(errors.InvalidArgument, "m", violations=(violation,) * count)
    *listed, last = status.error_from_status(status.status_of(sent)).violations
    if last.field == "...":
        assert last.description == f"{count - len(listed)} more are not listed"
        assert len(listed) < count
    else:
        assert len(listed) + 1 == count
    assert {one.field for one in listed} <= {violation.field}


def test_quota_errors_carry_quota_failure_and_retry_info():
    error = errors.ResourceExhausted("over quota", reason="TENANT_QUOTA", retry_delay_s=1.5)
    details = status.status_of(error).details
    quota, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert any(detail.Unpack(quota) for detail in details)
    assert any(detail.Unpack(retry) for detail in details)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_a_field_error_names_the_field():
    error = errors.field_error("sampling.top_p", "is 2, must be above 0 and at most 1")
    assert error.violations[0].field == "sampling.top_p"
    assert "sampling.top_p" in error.message


def test_an_unknown_code_reads_as_internal():
    pb = status.error_to_pb(make(errors.NotFound))
    pb.code = 999
    assert isinstance(status.error_from_pb(pb), errors.Internal)


@pytest.mark.parametrize("cls", LEAVES)
def test_default_reasons_are_stable_words(cls):
    assert cls("x").reason == cls("x").reason.upper()
