"""One driver of a fake sweep on a cluster that others use, too.

    python crowd.py ADDRESS FOLDER BASE_CACHE OVERRIDE...

Prints the placement groups that it leaves there.
"""

from __future__ import annotations

import json
import sys

import ray
from fake_sweep import drive

if __name__ == "__main__":
    drive(*sys.argv[1:])
    groups = ray.util.placement_group_table().values()
    left = [g["placement_group_id"] for g in groups if g["state"] != "REMOVED"]
    print(json.dumps(left))
