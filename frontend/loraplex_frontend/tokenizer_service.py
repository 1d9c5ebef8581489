"""``loraplex.v1.TokenizerService``: the tokenizer and chat template exactly as prompts meet them."""

import asyncio
from typing import Any, Final

from loraplex.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from loraplex_frontend.request import TokenPrompt
from loraplex_frontend.request_limits import RequestLimits
from loraplex_frontend.submission import Submission
from loraplex_frontend.text.tokenizer import Tokenizer
from loraplex_frontend.validate_prompt import check_bytes, check_chat, check_tokens
from loraplex_frontend.violations import Violations

_MAX_TEXTS: Final = 64


class TokenizerService(tokenizer_pb2_grpc.TokenizerServiceServicer):
    def __init__(self, *, tokenizer: Tokenizer, submission: Submission) -> None:
        self._tokenizer = tokenizer
        self._submission = submission

    async def Tokenize(self, request: tokenizer_pb2.TokenizeRequest, context: Any) -> tokenizer_pb2.TokenizeResponse:
        _check_texts(request, self._submission.limits())
        response = tokenizer_pb2.TokenizeResponse()
        for text in request.texts:
            ids = await self._tokenizer.encode_text_async(text, add_special_tokens=request.add_special_tokens)
            response.results.add(token_ids=ids)
        return response

    async def Detokenize(
        self, request: tokenizer_pb2.DetokenizeRequest, context: Any
    ) -> tokenizer_pb2.DetokenizeResponse:
        found = Violations()
        prompt = check_tokens("tokens", request.tokens, found, self._submission.limits())
        found.raise_if_any()
        assert isinstance(prompt, TokenPrompt)
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(
            self._tokenizer.threads, lambda: self._tokenizer.decode(prompt.token_ids, skip_special_tokens=skip)
        )
        return tokenizer_pb2.DetokenizeResponse(text=text)

    async def RenderChat(
        self, request: tokenizer_pb2.RenderChatRequest, context: Any
    ) -> tokenizer_pb2.RenderChatResponse:
        found = Violations()
        conversation = check_chat(request.chat, found, self._submission.limits())
        found.raise_if_any()
        rendered = await self._submission.render_chat(conversation)
        return tokenizer_pb2.RenderChatResponse(text=rendered.text, token_ids=rendered.token_ids)


def _check_texts(request: tokenizer_pb2.TokenizeRequest, limits: RequestLimits) -> None:
    found = Violations()
    if not request.texts:
        found.add("texts", f"is empty, must have 1 to {_MAX_TEXTS} entries")
    if found.at_most("texts", request.texts, _MAX_TEXTS):
        for index, text in enumerate(request.texts):
            check_bytes(f"texts[{index}]", text, found, limits)
    found.raise_if_any()
