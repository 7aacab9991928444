//! Acting inside another process: stopped tasks as types, batches of syscalls, the stub that survives us.
