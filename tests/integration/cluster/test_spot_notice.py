"""Real nodes of Ray drain when their cloud gives notice, or Kubernetes ends their pod."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import told_by

pytestmark = pytest.mark.ray

SCRIPT = Path(__file__).parents[1] / "cluster_given_notice.py"
LATE_S = 60.0  # what a busy machine may take between a notice and the look at what came of it


def test_a_notice_drains_the_node_of_its_machine_and_no_other() -> None:
    told = told_by(SCRIPT)
    assert told["before"] == []
    assert told["aws"].keys() == {"worker"}
    assert 120 - LATE_S < told["aws"]["worker"] < 120
    assert told["kubernetes"].keys() == {"worker", "pod"}
    assert 0 < told["kubernetes"]["pod"] <= 30  # what Kubernetes gives a pod
    assert told["gcp"].keys() == {"head"}
    assert 90 - LATE_S < told["gcp"]["head"] < 90
