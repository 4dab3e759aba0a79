//! The kernel with vector instructions, chosen at run time: the only unsafe code of this crate.
//!
//! * **Table shuffle** (SSSE3, AVX2, NEON): a product is the sum of the products of its two nibbles, and all sixteen
//!   products of a nibble fit into one register. See Plank, Greenan and Miller, *Screaming Fast Galois Field Arithmetic
//!   Using Intel SIMD Instructions*, FAST 2013.
//! * **Affine** (GFNI): to multiply by a constant is linear over GF(2), so it is an 8 × 8 matrix of bits, and
//!   `GF2P8AFFINEQB` applies one to every byte. (`GF2P8MULB` has the polynomial of AES, 0x11B, built in, which makes
//!   another field.)
#![allow(unsafe_code)]
#![cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(dead_code))]

use std::sync::LazyLock;

use super::mul;

#[cfg(target_arch = "aarch64")]
use aarch64::KNOWN;
#[cfg(target_arch = "x86_64")]
use x86_64::KNOWN;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
static KNOWN: [Simd; 0] = [];

/// Instructions that this machine has.
///
/// Only [`Simd::available`] hands one out, and it asks the machine first. The methods rely on that.
#[derive(Clone, Copy, Debug)]
pub struct Simd {
    name: &'static str,
    detect: fn() -> bool,
    /// Sound to call where `detect` says so.
    add: unsafe fn(&mut [u8], &[u8]),
    /// Likewise.
    add_scaled: unsafe fn(&mut [u8], u8, &[u8]),
}

impl Simd {
    /// All that this machine has, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        KNOWN.iter().filter(|simd| (simd.detect)()).copied()
    }

    /// The fastest that this machine has.
    #[inline]
    pub fn best() -> Option<Self> {
        static BEST: LazyLock<Option<Simd>> = LazyLock::new(|| Simd::available().next());
        *BEST
    }

    /// What they are called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// `y += x`.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn add(&self, y: &mut [u8], x: &[u8]) {
        // SAFETY: `available` handed this out, so the machine has the instructions.
        unsafe { (self.add)(y, x) }
    }

    /// `y += c · x`.
    ///
    /// # Panics
    /// If the lengths differ.
    #[inline]
    pub fn add_scaled(&self, y: &mut [u8], c: u8, x: &[u8]) {
        // SAFETY: `available` handed this out, so the machine has the instructions.
        unsafe { (self.add_scaled)(y, c, x) }
    }
}

/// The products of one `c` with each low nibble, 0 to 15, and with each high one, 0, 16, 32 to 240.
#[derive(Clone, Copy)]
struct Nibbles {
    low: [u8; 16],
    high: [u8; 16],
}

static NIBBLES: [Nibbles; 256] = nibbles();

const fn nibbles() -> [Nibbles; 256] {
    let mut tables = [Nibbles { low: [0; 16], high: [0; 16] }; 256];
    let mut c: u8 = 0;
    loop {
        let mut nibble: u8 = 0;
        while nibble < 16 {
            tables[c as usize].low[nibble as usize] = mul(c, nibble);
            tables[c as usize].high[nibble as usize] = mul(c, nibble << 4);
            nibble += 1;
        }
        if c == 255 {
            return tables;
        }
        c += 1;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;

    use super::super::{add_safe, in_chunks, multiples, xor};
    use super::{NIBBLES, Nibbles, Simd};

    pub(super) static KNOWN: [Simd; 3] = [
        Simd {
            name: "gfni",
            detect: || is_x86_feature_detected!("gfni") && is_x86_feature_detected!("avx2"),
            add: add_avx2,
            add_scaled: add_scaled_gfni,
        },
        Simd { name: "avx2", detect: || is_x86_feature_detected!("avx2"), add: add_avx2, add_scaled: add_scaled_avx2 },
        Simd {
            name: "ssse3",
            detect: || is_x86_feature_detected!("ssse3"),
            add: add_safe, // SSE2 goes without saying on this architecture.
            add_scaled: add_scaled_ssse3,
        },
    ];

    /// The matrix of multiplication by each `c`: bit `i` of a product is the parity of `x` under byte `7 - i`.
    static MATRICES: [u64; 256] = matrices();

    const fn matrices() -> [u64; 256] {
        let mut matrices = [0; 256];
        let mut c: u8 = 0;
        loop {
            // Bit `j` of `x` is worth `columns[j]`.
            let columns = multiples(c);
            let mut place = 0;
            while place < 64 {
                let (i, j) = (7 - place / 8, place % 8);
                matrices[c as usize] |= ((columns[j] >> i & 1) as u64) << place;
                place += 1;
            }
            if c == 255 {
                return matrices;
            }
            c += 1;
        }
    }

    /// The compiler makes vectors of it as in [`add_safe`], but wider ones.
    #[target_feature(enable = "avx2")]
    fn add_avx2(y: &mut [u8], x: &[u8]) {
        in_chunks(y, x, xor::<32>);
    }

    #[target_feature(enable = "gfni,avx2")]
    fn add_scaled_gfni(y: &mut [u8], c: u8, x: &[u8]) {
        let matrix = _mm256_set1_epi64x(MATRICES[c as usize].cast_signed());
        in_chunks(y, x, |y, x| {
            let product = _mm256_gf2p8affine_epi64_epi8::<0>(load_256(x), matrix);
            store_256(y, _mm256_xor_si256(load_256(y), product));
        });
    }

    #[target_feature(enable = "avx2")]
    fn add_scaled_avx2(y: &mut [u8], c: u8, x: &[u8]) {
        let Nibbles { low, high } = &NIBBLES[c as usize];
        let low = _mm256_broadcastsi128_si256(load_128(low));
        let high = _mm256_broadcastsi128_si256(load_128(high));
        let nibble = _mm256_set1_epi8(0x0F);
        in_chunks(y, x, |y, x| {
            let x = load_256(x);
            let of_low = _mm256_shuffle_epi8(low, _mm256_and_si256(x, nibble));
            let of_high = _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi16::<4>(x), nibble));
            store_256(y, _mm256_xor_si256(load_256(y), _mm256_xor_si256(of_low, of_high)));
        });
    }

    #[target_feature(enable = "ssse3")]
    fn add_scaled_ssse3(y: &mut [u8], c: u8, x: &[u8]) {
        let Nibbles { low, high } = &NIBBLES[c as usize];
        let (low, high) = (load_128(low), load_128(high));
        let nibble = _mm_set1_epi8(0x0F);
        in_chunks(y, x, |y, x| {
            let x = load_128(x);
            let of_low = _mm_shuffle_epi8(low, _mm_and_si128(x, nibble));
            let of_high = _mm_shuffle_epi8(high, _mm_and_si128(_mm_srli_epi16::<4>(x), nibble));
            store_128(y, _mm_xor_si128(load_128(y), _mm_xor_si128(of_low, of_high)));
        });
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_256(from: &[u8; 32]) -> __m256i {
        // SAFETY: these 32 bytes may be read, and `loadu` asks for no alignment.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store_256(to: &mut [u8; 32], vector: __m256i) {
        // SAFETY: these 32 bytes may be written, and `storeu` asks for no alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), vector) }
    }

    #[inline]
    fn load_128(from: &[u8; 16]) -> __m128i {
        // SAFETY: these 16 bytes may be read, and `loadu` asks for no alignment.
        unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
    }

    #[inline]
    fn store_128(to: &mut [u8; 16], vector: __m128i) {
        // SAFETY: these 16 bytes may be written, and `storeu` asks for no alignment.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), vector) }
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::{aarch64::*, is_aarch64_feature_detected};

    use super::super::{add_safe, in_chunks};
    use super::{NIBBLES, Nibbles, Simd};

    pub(super) static KNOWN: [Simd; 1] = [Simd {
        name: "neon",
        detect: || is_aarch64_feature_detected!("neon"),
        add: add_safe, // The compiler assumes NEON, unless it was told not to.
        add_scaled: add_scaled_neon,
    }];

    #[target_feature(enable = "neon")]
    fn add_scaled_neon(y: &mut [u8], c: u8, x: &[u8]) {
        let Nibbles { low, high } = &NIBBLES[c as usize];
        let (low, high) = (load(low), load(high));
        let nibble = vdupq_n_u8(0x0F);
        in_chunks(y, x, |y, x| {
            let x = load(x);
            let of_low = vqtbl1q_u8(low, vandq_u8(x, nibble));
            let of_high = vqtbl1q_u8(high, vshrq_n_u8::<4>(x));
            store(y, veorq_u8(load(y), veorq_u8(of_low, of_high)));
        });
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn load(from: &[u8; 16]) -> uint8x16_t {
        // SAFETY: these 16 bytes may be read, and bytes need no alignment.
        unsafe { vld1q_u8(from.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "neon")]
    fn store(to: &mut [u8; 16], vector: uint8x16_t) {
        // SAFETY: these 16 bytes may be written, and bytes need no alignment.
        unsafe { vst1q_u8(to.as_mut_ptr(), vector) }
    }
}
