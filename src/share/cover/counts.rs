//! What coverage costs.

/// What coverage costs at the moment, for operators and benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct CoverCounts {
    /// Stripes sealed, copies counted in.
    pub stripes: u64,
    /// Their members.
    pub members: u64,
    /// Bytes of segments in stripes, copies not counted in.
    pub segment_bytes: u64,
    /// Bytes of symbols that ideal parity has: for each row, its members' mean.
    pub ideal_bytes: u64,
    /// Bytes of symbols, all rows.
    pub symbol_bytes: u64,
    /// Bytes of bodies pushed, repairs counted in.
    pub pushed_bytes: u64,
    /// Shares pushed.
    pub pushed: u64,
    /// Entries that were covered before they were stable.
    pub covered: u64,
    /// How long these waited in all until their stripes were sealed, in microseconds.
    pub fill_us: u64,
    /// And from then on until they were covered, in microseconds.
    pub confirm_us: u64,
}
