"""Policies by name, and what tells them apart."""

import pytest

from loraplex_scheduler.core.config import CoreConfig
from loraplex_scheduler.core.policies import POLICY_NAMES, make_policy
from loraplex_scheduler.settings import SchedulerSettings


def test_every_policy_of_the_setting_can_be_made_and_no_other():
    for name in POLICY_NAMES:
        settings = SchedulerSettings.load(["--policy", name])
        assert make_policy(settings.core_config().policy, CoreConfig()) is not None
    with pytest.raises(ValueError, match="lifo"):
        make_policy("lifo", CoreConfig())
