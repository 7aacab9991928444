//! The agent: accepts peers and starts one worker process for each.
