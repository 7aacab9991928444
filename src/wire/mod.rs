//! Between hosts: identities, TLS with pinned keys, ssh, the hello, channels.
