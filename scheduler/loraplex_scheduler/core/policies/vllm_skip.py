"""As vLLM: first come, first served, past whatever lacks its adapter, for ever; want of KV pages blocks."""

from loraplex_scheduler.core.policies.first_come import FirstCome
from loraplex_scheduler.core.policy import Rules, Skips

VLLM_SKIP = FirstCome(rules=Rules(skips=Skips.ADAPTERS, lookahead=256, max_overtake_ns=None))
