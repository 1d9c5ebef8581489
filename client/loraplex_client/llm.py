"""vLLM's offline interface: a script is ported by changing its import.

from loraplex_client import LLM, LoRARequest, SamplingParams
"""

import atexit
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from loraplex_client.async_client import AsyncClient
from loraplex_client.batch_generation import BatchItem, run_batch
from loraplex_client.channel import Tls
from loraplex_client.client import Client
from loraplex_client.embedded_server import EmbeddedServer
from loraplex_client.llm_options import check_options, worker_dtype
from loraplex_client.lora_request import LoRARegistrar, LoRARequest
from loraplex_client.progress import UseTqdm, progress_bar
from loraplex_client.prompt import Chat
from loraplex_client.request_output import RequestOutput
from loraplex_client.sampling_params import SamplingParams
from loraplex_contract.errors import InvalidArgument, Unsupported, field_error

_T = TypeVar("_T")
OnePrompt = str | Sequence[int] | Mapping[str, Any]
Prompts = OnePrompt | Sequence[OnePrompt]
Conversation = Sequence[Mapping[str, Any]]


class LLM:
    """A base model with adapters, on a server of its own or on one that runs.

    Args:
        model: folder of the base model (None = the demo model). With ``target``: the name of the model served there.
        target: ``host:port`` of a running server. None = start a private one, which ends with ``close``, ``with`` or
            the program.
        enable_lora: False refuses every ``lora_request``.
        dtype: vLLM's name, for a private server.
        data_dir: of a private server; None = temporary.
        options: vLLM's other arguments. Those that only tune speed are accepted without effect; any other is refused.

    Raises:
        Unsupported: an argument that cannot be honoured, by name.
        Unavailable: the server cannot be reached or did not start, with the end of its log.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        target: str | None = None,
        enable_lora: bool = True,
        dtype: str = "auto",
        data_dir: str | Path | None = None,
        token: str | None = None,
        tls: Tls | None = None,
        **options: Any,
    ) -> None:
        check_options(options)
        own_dtype = worker_dtype(dtype)
        if target is not None and own_dtype is not None:
            raise Unsupported("LLM: dtype is the server's own choice where target is given; leave it out")
        self._enable_lora = enable_lora
        self._loras = LoRARegistrar()
        self._server: EmbeddedServer | None = None
        if target is None:
            folder = Path(data_dir) if data_dir is not None else None
            self._server = EmbeddedServer(model=model, data_dir=folder, dtype=own_dtype)
        atexit.register(self.close)
        self.client = Client(target or self._embedded_target(), token=token, tls=tls)
        """For everything that vLLM's interface lacks."""
        self._check_served(model if target is not None else None)

    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answers in the order of the prompts; all are in flight at once.

        Args:
            prompts: a text, token ids, ``{"prompt": ...}`` or ``{"prompt_token_ids": ...}``, or a list of them.
            sampling_params: one for all, or one per prompt. None = ``SamplingParams()``.
            use_tqdm: show a progress bar, for more than one prompt.
            lora_request: one for all, or one per prompt, None among them = the base model.
            priority: one per prompt, smaller runs first.

        Raises:
            InvalidArgument: a list is not as long as the prompts.
        """
        return self._run(
            [_parse(prompt) for prompt in _as_list(prompts)], sampling_params, lora_request, priority, use_tqdm
        )

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        lora_request: LoRARequest | Sequence[LoRARequest | None] | None = None,
        *,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[RequestOutput]:
        """As ``generate``, for one conversation or a list of them, rendered by the model's chat template."""
        if refused := sorted(name for name, value in options.items() if value not in (None, False, "auto")):
            raise Unsupported(f"LLM.chat: {', '.join(refused)}: not supported here; leave it out")
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        more = {"add_generation_prompt": add_generation_prompt, "template_args": dict(chat_template_kwargs or {})}
        chats = [Chat.of(cast(Conversation, conversation), **more) for conversation in conversations]

        async def render(client: AsyncClient) -> list[tuple[str | None, list[int] | None]]:
            return [await client.render_chat(chat) for chat in chats]

        return self._run(self.client.call(render), sampling_params, lora_request, None, use_tqdm)

    def get_default_sampling_params(self) -> SamplingParams:
        """What ``sampling_params=None`` means."""
        return SamplingParams()

    def close(self) -> None:
        """Closes the connection and stops a private server. Idempotent."""
        atexit.unregister(self.close)
        client: Client | None = getattr(self, "client", None)
        try:
            if client is not None:
                client.close()
        finally:
            if self._server is not None:
                self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside ---

    def _embedded_target(self) -> str:
        assert self._server is not None
        return self._server.target

    def _check_served(self, name: str | None) -> None:
        try:
            self.client.model(name or "")
        except BaseException:
            self.close()
            raise

    def _run(
        self,
        prompts: Sequence[tuple[str | None, list[int] | None]],
        sampling: SamplingParams | Sequence[SamplingParams] | None,
        lora: LoRARequest | Sequence[LoRARequest | None] | None,
        priority: Sequence[int] | None,
        use_tqdm: UseTqdm,
    ) -> list[RequestOutput]:
        count = len(prompts)
        columns = (
            _per_prompt("sampling_params", sampling or SamplingParams(), count),
            self._per_prompt_loras(lora, count),
            _per_prompt("priority", 0 if priority is None else priority, count),
        )
        items = [
            BatchItem(text=text, token_ids=token_ids, sampling=one, lora_request=adapter, priority=rank)
            for (text, token_ids), one, adapter, rank in zip(prompts, *columns, strict=True)
        ]
        with progress_bar(use_tqdm, count) as bar:
            return self.client.call(lambda client: run_batch(client, items, self._loras, bar))

    def _per_prompt_loras(
        self, lora: LoRARequest | Sequence[LoRARequest | None] | None, count: int
    ) -> Sequence[LoRARequest | None]:
        loras = _per_prompt("lora_request", lora, count)
        if not self._enable_lora and any(loras):
            raise InvalidArgument("lora_request: this LLM was made with enable_lora=False")
        return loras


def _per_prompt(field: str, value: _T | Sequence[_T], count: int) -> Sequence[_T]:
    """One for all, or a list as long as the prompts."""
    if not isinstance(value, (list, tuple)):
        return [cast(_T, value)] * count
    if len(value) != count:
        raise field_error(field, f"has {len(value)} entries for {count} prompts; give one, or one per prompt")
    return value


def _as_list(prompts: Prompts) -> Sequence[OnePrompt]:
    if isinstance(prompts, (str, Mapping)) or (prompts and isinstance(prompts[0], int)):
        return [cast(OnePrompt, prompts)]
    return cast(Sequence[OnePrompt], prompts)


def _parse(prompt: OnePrompt) -> tuple[str | None, list[int] | None]:
    """(text, token ids); one of them is None."""
    if isinstance(prompt, str):
        return prompt, None
    if not isinstance(prompt, Mapping):
        return None, list(prompt)
    if refused := sorted(set(prompt) - {"prompt", "prompt_token_ids"}):
        raise Unsupported(
            f"prompt: {', '.join(map(str, refused))}: not supported here; give prompt or prompt_token_ids"
        )
    if "prompt_token_ids" in prompt:
        return prompt.get("prompt"), list(prompt["prompt_token_ids"])
    if not isinstance(prompt.get("prompt"), str):
        raise field_error("prompt", "a prompt dict needs prompt (text) or prompt_token_ids")
    return prompt["prompt"], None
