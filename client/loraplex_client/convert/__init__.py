"""The edge: protobuf messages to and from the dataclasses of this package."""
