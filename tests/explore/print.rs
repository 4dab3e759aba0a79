//! Fingerprints of 128 bits, and parts of a world that are shared between worlds until one of them changes.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Two lanes of a multiplicative hash. Not for adversaries: two states of a search collide with odds of 2⁻⁹⁰ or so.
#[derive(Clone, Copy)]
pub struct Print {
    a: u64,
    b: u64,
}

impl Default for Print {
    fn default() -> Self {
        Self { a: 0x243f_6a88_85a3_08d3, b: 0x1319_8a2e_0370_7344 }
    }
}

fn fold(x: u64, y: u64) -> u64 {
    let wide = u128::from(x) * u128::from(y);
    (wide as u64) ^ ((wide >> 64) as u64)
}

impl Print {
    /// All 128 bits.
    pub fn done(self) -> u128 {
        let a = fold(self.a ^ 0xa409_3822_299f_31d0, 0x9e37_79b9_7f4a_7c15 | 1);
        let b = fold(self.b ^ 0x082e_fa98_ec4e_6c89, 0xc2b2_ae3d_27d4_eb4f | 1);
        (u128::from(a ^ self.b.rotate_left(17)) << 64) | u128::from(b ^ self.a.rotate_left(41))
    }
}

impl Hasher for Print {
    fn finish(&self) -> u64 {
        self.done() as u64
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_u64(bytes.len() as u64 ^ 0x5555);
    }

    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.a = fold(self.a ^ n, 0x9fb2_1c65_1e98_df25).wrapping_add(self.b);
        self.b = (self.b ^ n).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(29) ^ self.a.rotate_left(7);
    }

    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

/// The fingerprint of anything.
pub fn print_of(what: &impl Hash) -> u128 {
    let mut print = Print::default();
    what.hash(&mut print);
    print.done()
}

/// A part of a world: shared until it is written to, with its fingerprint once that was asked for.
#[derive(Clone)]
pub struct Part<T> {
    value: Arc<T>,
    print: Cell<Option<u128>>,
}

impl<T: Clone + Hash> Part<T> {
    pub fn new(value: T) -> Self {
        Self { value: Arc::new(value), print: Cell::new(None) }
    }

    pub fn edit(&mut self) -> &mut T {
        self.print.set(None);
        Arc::make_mut(&mut self.value)
    }
}

impl<T> std::ops::Deref for Part<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Hash> Hash for Part<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let print = self.print.get().unwrap_or_else(|| {
            let print = print_of(&*self.value);
            self.print.set(Some(print));
            print
        });
        state.write_u64(print as u64);
        state.write_u64((print >> 64) as u64);
    }
}

impl<T: PartialEq> PartialEq for Part<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.value, &other.value) || self.value == other.value
    }
}

impl<T: Eq> Eq for Part<T> {}
