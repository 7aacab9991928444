//! Pods stopped, paused, released: on the real kernel.
