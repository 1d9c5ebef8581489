"""Keeps a few processes alive, and ends them all."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from loraplex_cli.bounded_log import BoundedLog
from loraplex_cli.child import Child, ChildFailed, ChildSpec
from loraplex_cli.restart_policy import RestartPolicy
from loraplex_client.task_scope import TaskScope

_T = TypeVar("_T")


class Supervisor:
    """``async with Supervisor(...)``: when it is left, every child has ended, the last started first.

    After ``settle`` a child that ends is started again after a growing delay. One that ends before, or too often, makes
    ``start``, ``watch`` and ``wait`` raise ChildFailed. Cancelled while it leaves, it kills what is left.

    Args:
        log_folder: gets ``<name>.log`` of each child.
        tell: called with one line about each restart.
    """

    def __init__(
        self, log_folder: Path, *, policy: RestartPolicy | None = None, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        self._log_folder = log_folder
        self._policy = policy or RestartPolicy()
        self._tell = tell
        self.children: dict[str, Child] = {}
        self._scope = TaskScope()

    async def __aenter__(self) -> Self:
        await self._scope.open()
        self._failed: asyncio.Future[ChildFailed] = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for child in reversed(self.children.values()):
                await child.stop()
        finally:
            await self._scope.close()

    async def start(self, spec: ChildSpec) -> Child:
        """Returns when the child is ready. Raises ChildFailed if it, or another one, fails before."""
        child = Child(spec, BoundedLog(self._log_folder / f"{spec.name}.log"), self._policy, self._tell)
        self.children[spec.name] = child
        self._scope.start(self._keep(child), name=f"supervise/{spec.name}")
        await self.watch(child.ready.wait())
        return child

    async def watch(self, work: Awaitable[_T]) -> _T:
        """Waits for the work. Raises ChildFailed as soon as a child fails for good."""
        try:
            async with asyncio.TaskGroup() as tasks:
                task = tasks.create_task(_awaited(work), name="supervisor/watched")
                await asyncio.wait({task, self._failed}, return_when=asyncio.FIRST_COMPLETED)
                task.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        if task.cancelled():
            raise self._failed.result()
        result: _T = task.result()
        return result

    def settle(self) -> None:
        """The start is over: from now on a child that ends is started again."""
        for child in self.children.values():
            child.is_settled = True

    async def wait(self) -> None:
        """For ever, or until a child fails for good."""
        raise await asyncio.shield(self._failed)

    async def _keep(self, child: Child) -> None:
        try:
            await child.run()
        except ChildFailed as error:
            if not self._failed.done():
                self._failed.set_result(error)


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work
