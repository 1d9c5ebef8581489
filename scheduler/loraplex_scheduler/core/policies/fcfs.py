"""First come, first served: the head of the line blocks everybody, and nobody is refused early."""

from loraplex_scheduler.core.policies.first_come import FirstCome
from loraplex_scheduler.core.policy import Rules, Skips

FCFS = FirstCome(rules=Rules(skips=Skips.NOTHING, lookahead=0, max_overtake_ns=None))
