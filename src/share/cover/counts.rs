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
}
