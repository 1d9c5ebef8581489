"""As S-LoRA (arXiv 2311.03285): first come, first served, ``break`` at the first that does not fit, early abort."""

from loraplex_scheduler.core.policies.first_come import FirstCome
from loraplex_scheduler.core.policy import Rules, Skips

SLORA = FirstCome(rules=Rules(skips=Skips.NOTHING, lookahead=0, max_overtake_ns=None, aborts_late=True))
