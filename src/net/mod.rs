//! The pod’s network: links, NAT and published ports, the hold, capture and replay, announcements.
