"""The orders of right that an operator may choose from, one small file each."""

from loraplex_scheduler.core.policies.factory import POLICY_NAMES, make_policy

__all__ = ["POLICY_NAMES", "make_policy"]
