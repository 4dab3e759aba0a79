//! The bytes of a fuzzer as a source of decisions. Every input is valid, and what is missing at its end is zero.

pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next byte, if there is one.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Up to `length` bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// `length` bytes as a number, little-endian.
    pub(crate) fn number(&mut self, length: usize) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.bytes(length);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(bytes)
    }

    /// A number below `n`, from two bytes.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.number(2)).unwrap() % n.max(1)
    }

    /// A part of the input with its length in two bytes before it.
    pub(crate) fn part(&mut self) -> &'a [u8] {
        let length = usize::try_from(self.number(2)).unwrap();
        self.bytes(length)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What [`Input::part`] reads.
pub(crate) fn put_part(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(&u16::try_from(part.len()).unwrap().to_le_bytes());
    out.extend_from_slice(part);
}
