//! Page content: page sets, dirty trackers, the reader at the source, the filler at the target.
