"""Where files are: disks, object stores, packages."""
