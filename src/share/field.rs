//! Arithmetic in GF(2⁸), polynomial 0x11D.

/// `y += c · x`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled(y: &mut [u8], c: u8, x: &[u8]) {
    assert_eq!(y.len(), x.len());
    let _ = c;
}

/// (x ⊕ 128) / (x ⊕ (128 + j)).
pub fn cauchy(x: u8, j: u8) -> u8 { let _ = (x, j); 1 }

/// 1 + hash mod 255.
pub fn hash_coefficient(id: u64, lsn: u64) -> u8 { let _ = (id, lsn); 1 }
