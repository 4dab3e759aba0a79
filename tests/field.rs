//! GF(2⁸): that it is a field, that its matrices can be solved, and that all paths of the kernel give the same bytes.
//!
//! `cargo test --test field -- --nocapture` names the paths that this machine has.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tagalong::share::field::{self, cauchy, div, hash_coefficient, inv, mul};

/// Multiplication as it is taught: the product of two polynomials, divided by x⁸ + x⁴ + x³ + x² + 1.
fn product(a: u8, b: u8) -> u8 {
    let mut product = (0..8).filter(|bit| b >> bit & 1 == 1).fold(0, |sum, bit| sum ^ u16::from(a) << bit);
    for bit in (8..16).rev() {
        if product >> bit & 1 == 1 {
            product ^= 0x11D << (bit - 8);
        }
    }
    u8::try_from(product).expect("a remainder of degree below 8")
}

/// Bytes without a pattern.
fn bytes(len: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn products_are_those_of_polynomials() {
    let all: Vec<u8> = (0..=255).collect();
    for a in 0..=255 {
        let expected: Vec<u8> = all.iter().map(|b| product(a, *b)).collect();
        for b in 0..=255 {
            assert_eq!(mul(a, b), expected[usize::from(b)], "{a} times {b}");
        }
        let mut y = vec![0; 256];
        field::add_scaled_scalar(&mut y, a, &all);
        assert_eq!(y, expected, "the oracle of the other paths, for {a}");
    }
}

#[test]
fn it_is_a_field() {
    for a in 0..=255 {
        assert_eq!(mul(a, 1), a);
        assert_eq!(mul(a, 0), 0);
        if a != 0 {
            assert_eq!(mul(a, inv(a)), 1, "{a}");
        }
        for b in 0..=255 {
            let ab = mul(a, b);
            assert_eq!(ab, mul(b, a), "{a} {b}");
            if b != 0 {
                assert_eq!(div(ab, b), a, "{a} {b}");
            }
            for c in 0..=255 {
                assert_eq!(mul(ab, c), mul(a, mul(b, c)), "{a} {b} {c}");
                assert_eq!(mul(a, b ^ c), ab ^ mul(a, c), "{a} {b} {c}");
            }
        }
    }
}

#[test]
fn nothing_is_divided_by_zero() {
    assert!(catch_unwind(|| inv(0)).is_err());
    assert!(catch_unwind(|| div(7, 0)).is_err());
    assert!(catch_unwind(|| div(0, 0)).is_err());
}

/// Whether a square matrix can be solved, by elimination.
fn solvable(mut matrix: Vec<Vec<u8>>) -> bool {
    for column in 0..matrix.len() {
        let Some(pivot) = (column..matrix.len()).find(|row| matrix[*row][column] != 0) else { return false };
        matrix.swap(column, pivot);
        let (above, below) = matrix.split_at_mut(column + 1);
        let pivot = &above[column];
        for row in below {
            let factor = div(row[column], pivot[column]);
            field::add_scaled_scalar(row, factor, pivot);
        }
    }
    true
}

/// All ways to choose `n` of `from`, in their order.
fn choices(from: &[u8], n: usize) -> Vec<Vec<u8>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let with_first = |(at, first): (usize, &u8)| {
        let rest = choices(&from[at + 1..], n - 1);
        rest.into_iter().map(|rest| [&[*first], rest.as_slice()].concat()).collect::<Vec<_>>()
    };
    from.iter().enumerate().flat_map(with_first).collect()
}

#[test]
fn row_0_is_plain_parity() {
    for x in 0..128 {
        assert_eq!(cauchy(x, 0), 1, "member {x}");
        for j in 0..128 {
            assert_eq!(mul(cauchy(x, j), x ^ (128 + j)), x ^ 128, "member {x}, row {j}");
            assert_ne!(cauchy(x, j), 0, "member {x}, row {j}");
        }
    }
    for (x, j) in [(128, 0), (129, 0), (255, 7), (0, 128), (7, 255)] {
        assert!(catch_unwind(|| cauchy(x, j)).is_err(), "member {x}, row {j}");
    }
}

#[test]
fn whichever_members_are_lost_as_many_rows_bring_them_back() {
    let mut seen = 0;
    let mut check = |members: &[u8], rows: &[u8], size: usize| {
        let (members, rows) = (choices(members, size), choices(rows, size));
        for rows in &rows {
            for members in &members {
                let matrix = rows.iter().map(|j| members.iter().map(|x| cauchy(*x, *j)).collect()).collect();
                assert!(solvable(matrix), "members {members:?} by rows {rows:?}");
                seen += 1;
            }
        }
    };
    let all: Vec<u8> = (0..128).collect();
    check(&all, &all[..8], 2);
    for size in 1..=4 {
        check(&[0, 1, 2, 3, 4, 7, 8, 31, 32, 64, 126, 127], &[0, 1, 2, 3, 7, 64, 126, 127], size);
    }
    assert_eq!(seen, 8128 * 28 + 96 + 66 * 28 + 220 * 56 + 495 * 70);
}

#[test]
fn hashed_coefficients_are_part_of_the_format() {
    let known = [(0, 0), (0, 1), (1, 0), (7, 1_000_000), (u64::MAX, u64::MAX)];
    assert_eq!(known.map(|(id, lsn)| hash_coefficient(id, lsn)), [16, 131, 129, 191, 123]);
}

#[test]
fn hashed_coefficients_are_spread_evenly() {
    let mut seen = [0u32; 256];
    for id in 0..400 {
        for lsn in 0..255 {
            seen[usize::from(hash_coefficient(id, 1_000_000 + lsn))] += 1;
        }
    }
    assert_eq!(seen[0], 0, "an entry that is not in its share");
    let chi_square: f64 = seen[1..].iter().map(|n| (f64::from(*n) - 400.0).powi(2) / 400.0).sum();
    assert!((170.0..340.0).contains(&chi_square), "254 expected, with a deviation of 23: {chi_square}");
}

#[test]
fn hashed_rows_are_as_independent_as_dice() {
    let trials = 2000;
    let rows = |trial: u64| {
        let row = |id: u64| (0..16).map(|lsn| hash_coefficient(trial * 16 + id, trial * 16 + lsn)).collect();
        (0..16).map(row).collect::<Vec<_>>()
    };
    let stuck = (0..trials).filter(|trial| !solvable(rows(*trial))).count();
    assert!((1..20).contains(&stuck), "8 of {trials} expected, with a deviation of 3: {stuck}");
}

type Path<'a> = (&'a str, Box<dyn Fn(&mut [u8], u8, &[u8])>);

/// Every path of the kernel but the oracle. Those that only add, which is to multiply by 1, are told so by their name.
fn paths() -> Vec<Path<'static>> {
    #[cfg_attr(not(feature = "simd"), allow(unused_mut))]
    let mut paths: Vec<Path> = vec![
        ("add_scaled", Box::new(field::add_scaled)),
        ("safe", Box::new(field::add_scaled_safe)),
        ("add", Box::new(|y, _, x| field::add(y, x))),
        ("add: safe", Box::new(|y, _, x| field::add_safe(y, x))),
    ];
    #[cfg(feature = "simd")]
    for simd in field::simd::Simd::available() {
        paths.push((simd.name(), Box::new(move |y, c, x| simd.add_scaled(y, c, x))));
        paths.push((format!("add: {}", simd.name()).leak(), Box::new(move |y, _, x| simd.add(y, x))));
    }
    paths
}

fn factors(path: &Path) -> std::ops::RangeInclusive<u8> {
    if path.0 == "add" || path.0.starts_with("add: ") { 1..=1 } else { 0..=255 }
}

/// Runs a path inside of larger buffers, and asks for the oracle's bytes and nothing else touched.
fn agrees((name, path): &Path, c: u8, len: usize, y_at: usize, x_at: usize) {
    let (mut y, x) = (bytes(y_at + len + 64, 1), bytes(x_at + len + 64, 2));
    let (y_range, x) = (y_at..y_at + len, &x[x_at..x_at + len]);
    let mut expected = y.clone();
    field::add_scaled_scalar(&mut expected[y_range.clone()], c, x);
    path(&mut y[y_range], c, x);
    assert!(y == expected, "{name}: {c} times {len} bytes, at {y_at} and {x_at}");
}

#[test]
fn every_path_gives_the_bytes_of_the_scalar_one() {
    for path in paths() {
        println!("path: {}", path.0);
        for c in factors(&path) {
            for len in (0..=130).chain([255, 1021, 4096, 4999]) {
                agrees(&path, c, len, 0, 0);
            }
        }
        let last = *factors(&path).end();
        for len in (131..5000).step_by(2) {
            agrees(&path, last, len, 0, 0);
        }
    }
}

#[test]
fn no_path_asks_for_alignment() {
    for path in paths() {
        for len in [1, 15, 31, 32, 33, 64, 97, 160] {
            for y_at in 0..=32 {
                for x_at in 0..=32 {
                    agrees(&path, *factors(&path).end(), len, y_at, x_at);
                }
            }
        }
    }
}

#[test]
fn vectors_of_different_lengths_do_not_add() {
    let oracle: Path = ("scalar", Box::new(field::add_scaled_scalar));
    for path in paths().into_iter().chain([oracle]) {
        for (y_len, x_len) in [(0, 1), (1, 0), (31, 32), (33, 32), (64, 96), (4096, 4095)] {
            for c in [0, 1, 2] {
                let (mut y, x) = (vec![0; y_len], vec![0; x_len]);
                let outcome = catch_unwind(AssertUnwindSafe(|| path.1(&mut y, c, &x)));
                assert!(outcome.is_err(), "{}: {c} times {x_len} bytes to {y_len}", path.0);
            }
        }
    }
}

#[test]
fn scaling_is_multiplication_in_place() {
    for len in [0, 1, 31, 1023, 1024, 1025, 3000] {
        for c in 0..=255 {
            let before = bytes(len, 3);
            let mut y = before.clone();
            field::scale(&mut y, c);
            assert!(y.iter().zip(&before).all(|(y, before)| *y == product(c, *before)), "{c} times {len} bytes");
        }
    }
}
