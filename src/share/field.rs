//! Arithmetic in GF(2⁸), and the one hot loop of shares: `y += c · x`.
//!
//! A byte stands for a polynomial over GF(2), taken modulo x⁸ + x⁴ + x³ + x² + 1 (0x11D): the field of RFC 8681,
//! section 3.7.1. To add is XOR, so everything is its own opposite and there is no subtraction. The element 2
//! generates all others but zero, so that a product is a sum of logarithms.
//!
//! [`add_scaled`] takes the fastest path that the build and the machine have. All of them give the same bytes:
//!
//! | path | how it multiplies |
//! | --- | --- |
//! | [`add_scaled_scalar`] | byte by byte, with [`mul`]: the oracle of the others |
//! | [`add_scaled_safe`] | every bit of `x` picks its multiple of `c`, without a branch; the compiler makes vectors of it |
//! | `simd::Simd` | with instructions that the machine was asked for: feature `simd` |

#[cfg(feature = "simd")]
pub mod simd;

/// x⁸ + x⁴ + x³ + x² + 1, without its highest term.
const POLYNOMIAL: u8 = 0x1D;

/// The powers of 2, twice in a row: the sum of two logarithms needs no reduction.
static EXP: [u8; 510] = powers();

/// The exponent of each power of 2. Zero is none, and its place is not used.
static LOG: [u8; 256] = logarithms();

const fn double(a: u8) -> u8 {
    (a << 1) ^ if a & 0x80 != 0 { POLYNOMIAL } else { 0 }
}

const fn powers() -> [u8; 510] {
    let mut powers = [1; 510];
    let mut i = 1;
    while i < powers.len() {
        powers[i] = double(powers[i - 1]);
        i += 1;
    }
    powers
}

const fn logarithms() -> [u8; 256] {
    let mut logarithms = [0; 256];
    let mut exponent = 0;
    while exponent < 255 {
        logarithms[EXP[exponent as usize] as usize] = exponent;
        exponent += 1;
    }
    logarithms
}

/// `a · b`.
pub const fn mul(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 { 0 } else { EXP[LOG[a as usize] as usize + LOG[b as usize] as usize] }
}

/// What gives 1 when multiplied by `a`.
///
/// # Panics
/// If `a` is 0, which has no inverse: who divides by it would go on with wrong bytes.
pub const fn inv(a: u8) -> u8 {
    assert!(a != 0, "0 has no inverse");
    EXP[255 - LOG[a as usize] as usize]
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
/// It is a Cauchy matrix, 1 / (x ⊕ (128 + j)), whose columns are scaled so that row 0 is all ones: a parity by plain
/// XOR. Every square submatrix of a Cauchy matrix is non-singular, and no scaling by something other than zero changes
/// that. So whichever members are lost, as many rows bring them back.
///
/// # Panics
/// If `x` or `j` is 128 or more.
pub const fn cauchy(x: u8, j: u8) -> u8 {
    assert!(x < 128 && j < 128, "a Cauchy matrix of 128 by 128");
    div(x ^ 128, x ^ (128 + j))
}

/// The coefficient of the entry at `lsn` in the window share `id`: one of the 255 that are not zero.
///
/// Encoder and decoder compute it apart, so it is part of the format. The mix is the output function of SplitMix64
/// (Steele, Lea and Flood, OOPSLA 2014), once over each number.
pub const fn hash_coefficient(id: u64, lsn: u64) -> u8 {
    const fn mix(z: u64) -> u64 {
        let z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    (mix(mix(id) ^ lsn) % 255) as u8 + 1
}

/// `y += x`, which is XOR, on the fastest path there is.
///
/// # Panics
/// If the lengths differ.
pub fn add(y: &mut [u8], x: &[u8]) {
    #[cfg(feature = "simd")]
    if let Some(simd) = simd::Simd::best() {
        return simd.add(y, x);
    }
    add_safe(y, x);
}

/// `y += c · x`, on the fastest path there is.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled(y: &mut [u8], c: u8, x: &[u8]) {
    match c {
        0 => same_length(y, x),
        1 => add(y, x),
        _ => {
            #[cfg(feature = "simd")]
            if let Some(simd) = simd::Simd::best() {
                return simd.add_scaled(y, c, x);
            }
            add_scaled_safe(y, c, x);
        }
    }
}

/// `y = c · y`.
pub fn scale(y: &mut [u8], c: u8) {
    // c · y = y + (c + 1) · y, a copy at a time.
    let mut copy = [0; 1024];
    for y in y.chunks_mut(copy.len()) {
        let copy = &mut copy[..y.len()];
        copy.copy_from_slice(y);
        add_scaled(y, c ^ 1, copy);
    }
}

/// `y += c · x`, byte by byte: slow, and what the other paths are compared with.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled_scalar(y: &mut [u8], c: u8, x: &[u8]) {
    same_length(y, x);
    for (y, x) in y.iter_mut().zip(x) {
        *y ^= mul(c, *x);
    }
}

/// `y += x` in safe code for any machine.
///
/// # Panics
/// If the lengths differ.
pub fn add_safe(y: &mut [u8], x: &[u8]) {
    in_chunks(y, x, xor::<32>);
}

/// `y += c · x` in safe code for any machine.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled_safe(y: &mut [u8], c: u8, x: &[u8]) {
    let multiples = multiples(c);
    in_chunks(y, x, |y: &mut [u8; 32], x| {
        for (y, x) in y.iter_mut().zip(x) {
            let mut bits = *x;
            for multiple in multiples.iter().rev() {
                // All ones if the highest bit is set, else all zeros.
                *y ^= multiple & ((bits as i8) >> 7) as u8;
                bits <<= 1;
            }
        }
    });
}

/// `c`, `2c`, `4c` and so on: what each bit of a factor is worth.
const fn multiples(c: u8) -> [u8; 8] {
    let mut multiples = [c; 8];
    let mut i = 1;
    while i < multiples.len() {
        multiples[i] = double(multiples[i - 1]);
        i += 1;
    }
    multiples
}

#[inline(always)]
fn xor<const N: usize>(y: &mut [u8; N], x: &[u8; N]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y ^= x;
    }
}

/// Hands both slices to `f` in pieces of `N` bytes. `f` treats every byte alike, whatever its neighbours are.
#[inline(always)]
fn in_chunks<const N: usize>(y: &mut [u8], x: &[u8], f: impl Fn(&mut [u8; N], &[u8; N])) {
    same_length(y, x);
    let Some((mut last, last_x)) = y.last_chunk().copied().zip(x.last_chunk()) else {
        // Less than one piece: computed on copies that are filled up with zeros.
        let (mut padded, mut padded_x) = ([0; N], [0; N]);
        padded[..y.len()].copy_from_slice(y);
        padded_x[..x.len()].copy_from_slice(x);
        f(&mut padded, &padded_x);
        y.copy_from_slice(&padded[..y.len()]);
        return;
    };
    // What does not fill a piece is the end of the last `N` bytes, computed before any of them changes. The beginning
    // of those is computed twice, with one result.
    let ragged = !y.len().is_multiple_of(N);
    if ragged {
        f(&mut last, last_x);
    }
    for (y, x) in y.as_chunks_mut().0.iter_mut().zip(x.as_chunks().0) {
        f(y, x);
    }
    if ragged && let Some(end) = y.last_chunk_mut() {
        *end = last;
    }
}

fn same_length(y: &[u8], x: &[u8]) {
    assert_eq!(y.len(), x.len(), "vectors of different lengths do not add");
}
