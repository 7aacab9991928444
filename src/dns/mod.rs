//! Names: the embedded authoritative zone and signed updates to it or to any other server.
