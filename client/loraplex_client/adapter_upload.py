"""What an upload has come to, and how a folder is sent."""

import dataclasses
import datetime


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class UploadedFile:
    """One file of an upload, as far as the server has it."""

    file_name: str
    num_bytes: int
    num_committed_bytes: int
    is_complete: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AdapterUpload:
    """An upload on the server. ``register_adapter`` takes it as a source, and it is gone then."""

    upload_id: str
    files: tuple[UploadedFile, ...]
    expire_time: datetime.datetime | None
    """When the server forgets it, if nobody goes on with it."""

    @property
    def is_complete(self) -> bool:
        return bool(self.files) and all(file.is_complete for file in self.files)
