"""Generates Python code beside each .proto file; ``--check`` fails where the committed code is out of step."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).resolve().parent


def generate(target: Path) -> None:
    """Runs protoc with the stubs of mypy-protobuf, which type both the sync and the asyncio API."""
    protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("loraplex/**/*.proto"))
    scripts = Path(sys.executable).parent
    plugins = [f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    outputs = [f"--{name}_out={target}" for name in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}", *plugins, *outputs, *protos]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    drop_stubs_of_empty_services(target)


def drop_stubs_of_empty_services(target: Path) -> None:
    """Files without a service get no gRPC module: an import of one is a mistake worth an error."""
    for path in target.glob("loraplex/**/*_pb2_grpc.py"):
        if "class " not in path.read_text():
            path.unlink()
            path.with_suffix(".pyi").unlink(missing_ok=True)


def generated(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("loraplex/**/*_pb2*.py*"))}


def check() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        wanted, found = generated(Path(folder)), generated(PROTO)
    stale = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    for name in stale:
        print(f"not in step with its .proto: {name} (run `make proto`)", file=sys.stderr)
    return 1 if stale else 0


def replace() -> int:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        for name in generated(PROTO):
            (PROTO / name).unlink()
        for name in generated(Path(folder)):
            shutil.copyfile(Path(folder) / name, PROTO / name)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    sys.exit(check() if parser.parse_args().check else replace())
