"""What a frontend hears, kept as it would keep it: every token once and in order, one terminal for each sequence."""

from collections.abc import Iterable

from loraplex_scheduler.core import command as commands
from loraplex_scheduler.core.event import RequestKey, Submitted
from loraplex_scheduler.core.finish import FinishReason
from loraplex_scheduler.core.seed import sequence_seed
from tests.scheduler.model_worker import token_of


class Client:
    """One request as its frontend sees it."""

    def __init__(self, submitted: Submitted) -> None:
        self.submitted = submitted
        self.rejected: commands.Rejected | None = None
        self.accepted: commands.Accepted | None = None
        self.started: commands.Started | None = None
        self.outputs: list[list[int]] = [[] for _ in range(submitted.num_sequences)]
        self.finishes: dict[int, commands.Finished] = {}
        self.is_orphan = False
        """Its frontend is gone: nothing may come any more."""

    @property
    def is_over(self) -> bool:
        return self.is_orphan or self.rejected is not None or len(self.finishes) == len(self.outputs)

    def hear(self, command: commands.FrontendCommand) -> None:
        assert not self.is_orphan, f"{command} for a frontend that is gone"
        assert self.rejected is None, f"{command} after the rejection"
        match command:
            case commands.Rejected():
                assert self.accepted is None, "rejected after acceptance"
                self.rejected = command
            case commands.Accepted():
                assert self.accepted is None, "accepted twice"
                self.accepted = command
            case commands.Started():
                assert self.accepted is not None
                assert self.started is None, "started twice"
                self.started = command
            case commands.Tokens():
                self._hear_tokens(command)
            case commands.Finished():
                self._hear_finish(command)

    def _hear_tokens(self, tokens: commands.Tokens) -> None:
        assert self.started is not None
        assert tokens.index not in self.finishes, "tokens after the finish"
        output = self.outputs[tokens.index]
        assert tokens.first_index == len(output), f"index {tokens.first_index} after {len(output)} tokens"
        output += tokens.token_ids
        weights = tuple(commands.AdapterWeight(digest=p.digest, weight=p.weight) for p in self.started.adapters)
        seed = sequence_seed(self.started.seed, tokens.index)
        for index in range(tokens.first_index, len(output)):
            assert output[index] == token_of(self.submitted.prompt_ids, weights, seed, index), "a wrong token"

    def _hear_finish(self, finished: commands.Finished) -> None:
        assert self.started is not None
        assert finished.index not in self.finishes, "two terminals"
        self.finishes[finished.index] = finished
        num_output = len(self.outputs[finished.index])
        assert finished.usage.num_output_tokens <= num_output
        if finished.reason is FinishReason.MAX_TOKENS:
            assert num_output == self.submitted.max_tokens, "tokens are missing"
        assert (finished.reason is FinishReason.ERROR) <= (finished.error is not None)


class Clients:
    """All requests of all frontends."""

    def __init__(self) -> None:
        self.by_key: dict[RequestKey, Client] = {}

    def __getitem__(self, key: RequestKey) -> Client:
        return self.by_key[key]

    def add(self, submitted: Submitted) -> Client:
        client = self.by_key[submitted.key] = Client(submitted)
        return client

    def hear(self, turn: Iterable[commands.Command]) -> None:
        for command in turn:
            if isinstance(command, commands.FrontendCommand):
                self.by_key[command.key].hear(command)

    def open(self) -> list[Client]:
        return [client for client in self.by_key.values() if not client.is_over]

    def lose(self, frontend_id: str) -> None:
        for client in self.open():
            if client.submitted.key.frontend_id == frontend_id:
                client.is_orphan = True
