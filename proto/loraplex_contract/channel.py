"""gRPC options that every server and client of loraplex uses. Why each: docs/adr/0004-transport.md."""

from typing import Final

MAX_MESSAGE_BYTES: Final = 16 << 20
_SIZES: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *_SIZES,
    # A second server on the same port must fail to bind instead of taking half the traffic.
    ("grpc.so_reuseport", 0),
    # Clients may ping every 10 s, also while a stream is silent.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Above 1,000 pending calls the default drops some of a burst at random.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
    ("grpc.max_metadata_size", 8_192),
    ("grpc.absolute_max_metadata_size", 8_192),
)

CLIENT_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *_SIZES,
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without it a frozen peer is noticed after 60 s whatever the two above say.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name this is how long one attempt to connect may take: a busy peer greets late.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)

LINK_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *CLIENT_OPTIONS,
    # Links of one process must not share a TCP connection: a large frame on one would delay a heartbeat on another.
    ("grpc.use_local_subchannel_pool", 1),
)
