//! An image is a recorded migration: frames, records, the check of the whole graph, image files.
