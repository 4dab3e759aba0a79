//! The source of chance that is handed to generators: seeded, so that a seed is a run.

/// A seeded generator of numbers: the same seed gives the same numbers, in every version of this crate.
///
/// It is for tests (SplitMix64, as in Java's `SplittableRandom`), and no source of secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dice(u64);

impl Dice {
    /// A generator that begins at `seed`.
    pub fn new(seed: u64) -> Self {
        // Seeds that follow each other would begin alike otherwise.
        let mut dice = Self(seed.wrapping_mul(0xd134_2543_de82_ef95));
        dice.roll();
        dice
    }

    /// The next number, of all 64 bits.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.roll().checked_rem(n).unwrap_or(0)
    }

    /// An index into something of length `n`; 0 if `n` is 0.
    pub fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap_or(0)
    }

    /// `true` in `chance` of 100 cases.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of `of`.
    ///
    /// # Panics
    /// If there is nothing to pick from.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        assert!(!of.is_empty(), "there is nothing to pick from");
        of[self.index(of.len())]
    }

    /// Up to `most` bytes of any value, and at times none.
    pub fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.index(most.saturating_add(1));
        (0..length).map(|_| self.roll().to_le_bytes()[0]).collect()
    }
}
