//! Arithmetic in GF(2⁸), polynomial 0x11D.

/// `a · b`.
pub const fn mul(a: u8, b: u8) -> u8 {
    let (mut a, mut b, mut product) = (a, b, 0);
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 != 0 { 0x1D } else { 0 };
        b >>= 1;
    }
    product
}

/// What gives 1 when multiplied by `a`.
///
/// # Panics
/// If `a` is 0.
pub const fn inv(a: u8) -> u8 {
    assert!(a != 0, "0 has no inverse");
    // a^254, since a^255 is 1.
    let (mut power, mut result, mut i) = (a, 1, 0);
    while i < 7 {
        power = mul(power, power);
        result = mul(result, power);
        i += 1;
    }
    result
}

/// `a / b`.
///
/// # Panics
/// If `b` is 0.
pub const fn div(a: u8, b: u8) -> u8 {
    mul(a, inv(b))
}

/// The coefficient of member `x` in row `j` of a stripe: (x ⊕ 128) / (x ⊕ (128 + j)).
///
/// # Panics
/// If `x` or `j` is 128 or more.
pub const fn cauchy(x: u8, j: u8) -> u8 {
    assert!(x < 128 && j < 128, "a Cauchy matrix of 128 by 128");
    div(x ^ 128, x ^ (128 + j))
}

/// `y += c · x`, element by element.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled(y: &mut [u8], c: u8, x: &[u8]) {
    assert_eq!(y.len(), x.len(), "vectors of different lengths do not add");
    if c == 1 {
        y.iter_mut().zip(x).for_each(|(y, x)| *y ^= x);
    } else if c != 0 {
        let products: [u8; 256] = std::array::from_fn(|x| mul(c, x.to_le_bytes()[0]));
        y.iter_mut().zip(x).for_each(|(y, x)| *y ^= products[usize::from(*x)]);
    }
}

/// `y = c · y`.
pub fn scale(y: &mut [u8], c: u8) {
    y.iter_mut().for_each(|y| *y = mul(c, *y));
}

/// The coefficient of the entry at `lsn` in the window share numbered `id`: 1 + hash64(id, LSN) mod 255, never 0.
pub const fn hash_coefficient(id: u64, lsn: u64) -> u8 {
    let mut hash = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ lsn;
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (hash ^ (hash >> 31)).to_le_bytes()[0] % 255 + 1
}
