//! What a process used of the machine, as the kernel accounts it.

use std::fs;

use crate::Result;

/// The kernel's clock tick in these files, on every architecture of today.
const TICKS_PER_S: u64 = 100;

/// Used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Time on a processor, for the process and for the kernel on its behalf.
    pub(crate) cpu_us: u64,
    /// Resident memory now.
    pub(crate) memory: u64,
}

impl Usage {
    /// To the microsecond.
    pub(crate) fn of_this_process() -> Result<Usage> {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let cpu_us = u64::try_from(used.tv_sec)? * 1_000_000 + u64::try_from(used.tv_nsec)? / 1000;
        Ok(Usage { cpu_us, ..Self::of("self")? })
    }

    /// Of a process by its number, in the kernel's ticks.
    pub(crate) fn of(process: &str) -> Result<Usage> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name may have blanks in it, and ends with the last bracket.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
        Ok(Usage { cpu_us: (ticks(11) + ticks(12)) * 1_000_000 / TICKS_PER_S, memory: kilobytes << 10 })
    }

    /// The most memory that was resident at once so far.
    pub(crate) fn peak_of_this_process() -> Result<u64> {
        let status = fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        let kilobytes: u64 = line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0);
        Ok(kilobytes << 10)
    }

    /// The processor's time since then.
    pub(crate) fn since(self, earlier: Usage) -> Usage {
        Usage { cpu_us: self.cpu_us.saturating_sub(earlier.cpu_us), memory: self.memory }
    }
}
