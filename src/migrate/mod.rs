//! Moving a pod: the two ends, the commit, the journal, the report.
