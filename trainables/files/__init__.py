"""Where things lie: disks, object stores, packages."""
