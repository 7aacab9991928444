//! Limits of a group: memory, tasks, processor time, on v2 or in the v1 hierarchy that has the controller.

use super::{Cgroup, Error, Result, write_file};
use crate::base::spec::Limits;
use std::fs;
use std::path::Path;

impl Cgroup {
    /// Writes the limits; `None` leaves a limit alone.
    pub fn set_limits(&self, limits: &Limits) -> Result<()> {
        if let Some(bytes) = limits.memory {
            self.limit("memory", "memory", "memory.max", "memory.limit_in_bytes", &bytes.to_string())?;
        }
        if let Some(count) = limits.pids {
            self.limit("pids", "pids", "pids.max", "pids.max", &count.to_string())?;
        }
        if let Some(cpus) = limits.cpus {
            self.set_cpus(cpus)?;
        }
        Ok(())
    }

    fn set_cpus(&self, cpus: f64) -> Result<()> {
        const PERIOD_US: u32 = 100_000;
        // 1 ms is the least quota the kernel takes (man 7 cgroups, cpu.cfs_quota_us).
        let quota = (cpus * f64::from(PERIOD_US)).round().clamp(1000.0, 1e15) as u64;
        if let Some(dir) = self.v1.get("cpu") {
            write_file(&dir.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
        }
        let v2_value = format!("{quota} {PERIOD_US}");
        if self.v1.contains_key("cpu") {
            self.limit("cpus", "cpu", "cpu.max", "cpu.cfs_quota_us", &quota.to_string())
        } else {
            self.limit("cpus", "cpu", "cpu.max", "cpu.cfs_quota_us", &v2_value)
        }
    }

    fn limit(
        &self,
        what: &'static str,
        controller: &'static str,
        v2_file: &str,
        v1_file: &str,
        value: &str,
    ) -> Result<()> {
        if let Some(dir) = self.v1.get(controller) {
            return write_file(&dir.join(v1_file), value);
        }
        if !self.is_v2 || !self.enable_v2(controller)? {
            return Err(Error::NoController { what, controller });
        }
        write_file(&self.main.join(v2_file), value)
    }

    /// Turns `controller` on for the group, from the root downwards; false if the root has none.
    fn enable_v2(&self, controller: &str) -> Result<bool> {
        let has = |dir: &Path| {
            fs::read_to_string(dir.join("cgroup.controllers"))
                .is_ok_and(|t| t.split_whitespace().any(|c| c == controller))
        };
        if !has(&self.root) {
            return Ok(false);
        }
        let mut dir = self.root.clone();
        for part in self.rel.components() {
            write_file(&dir.join("cgroup.subtree_control"), &format!("+{controller}"))?;
            dir.push(part);
        }
        Ok(has(&self.main))
    }
}
