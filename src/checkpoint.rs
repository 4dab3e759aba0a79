//! The watermarks of a log and the order they keep.
//!
//! ```text
//!   stable ≤ covered ≤ head        logged ≤ head        each monotone within a reign
//! ```
//!
//! It is a lattice, not a chain: the backup may be ahead of the primary's own disk, so `stable` may pass `logged`.
//! `stable` is the **checkpoint**: clients release what it covers. Invariants: I2 and I3 rest on it.

use crate::log::{Level, Lsn};

/// The watermarks of one reign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Watermarks {
    head: Lsn,
    logged: Lsn,
    stable: Lsn,
    covered: Lsn,
}

impl Watermarks {
    /// Marks of a log that ends at `head`, all of it on the node's own disk, with `stable` known so far.
    ///
    /// # Panics
    /// If `stable` lies past `head`.
    pub fn new(head: Lsn, stable: Lsn) -> Self {
        let marks = Self { head, logged: head, stable, covered: stable };
        marks.check();
        marks
    }

    /// The last LSN assigned.
    pub fn head(&self) -> Lsn {
        self.head
    }

    /// The last LSN durable on the node's own disk.
    pub fn logged(&self) -> Lsn {
        self.logged
    }

    /// The last LSN durable at the stability target.
    pub fn stable(&self) -> Lsn {
        self.stable
    }

    /// Up to here everything is stable, or was covered when the mark passed it.
    pub fn covered(&self) -> Lsn {
        self.covered
    }

    /// The log grew by one entry, at `lsn`.
    ///
    /// # Panics
    /// If `lsn` is not the next one (I1).
    pub fn append(&mut self, lsn: Lsn) {
        assert_eq!(lsn, self.head.next(), "I1: LSNs are dense");
        self.head = lsn;
    }

    /// The node's own disk reached `upto`. Returns whether that is news.
    ///
    /// # Panics
    /// If it lies past the head: our own disk cannot know more than we wrote.
    pub fn log(&mut self, upto: Lsn) -> bool {
        assert!(upto <= self.head, "logged {upto} past head {}", self.head);
        let news = upto > self.logged;
        self.logged = self.logged.max(upto);
        news
    }

    /// The stability target reached `upto`. Returns whether that is news.
    ///
    /// # Panics
    /// If it lies past the head: the caller has checked what a peer claims.
    pub fn stabilize(&mut self, upto: Lsn) -> bool {
        assert!(upto <= self.head, "stable {upto} past head {}", self.head);
        let news = upto > self.stable;
        self.stable = self.stable.max(upto);
        self.covered = self.covered.max(upto);
        news
    }

    /// Everything up to `upto` is covered. Returns whether that is news.
    ///
    /// # Panics
    /// If it lies past the head.
    pub fn cover(&mut self, upto: Lsn) -> bool {
        assert!(upto <= self.head, "covered {upto} past head {}", self.head);
        let news = upto > self.covered;
        self.covered = self.covered.max(upto);
        news
    }

    /// Whether an entry at `lsn` meets `level` once it is applied.
    pub fn meets(&self, level: Level, lsn: Lsn) -> bool {
        match level {
            Level::Local | Level::Tagged => lsn <= self.head,
            Level::Covered => lsn <= self.covered,
            Level::Stable => lsn <= self.stable,
        }
    }

    /// Asserts the order of the marks.
    pub fn check(&self) {
        assert!(self.stable <= self.covered, "stable {} past covered {}", self.stable, self.covered);
        assert!(self.covered <= self.head, "covered {} past head {}", self.covered, self.head);
        assert!(self.logged <= self.head, "logged {} past head {}", self.logged, self.head);
    }
}
