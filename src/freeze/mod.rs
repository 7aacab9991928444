//! All tasks of a pod stopped, or none; then the cgroup freezer over the stops.
