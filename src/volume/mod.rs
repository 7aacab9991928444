//! Files that travel with a pod.
