//! The kernel of shares, `y += c · x`, path by path and beside a copy of the same bytes.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tagalong::share::field;

type Kernel = Box<dyn Fn(&mut [u8], u8, &[u8])>;

fn paths() -> Vec<(&'static str, Kernel)> {
    #[cfg_attr(not(feature = "simd"), allow(unused_mut))]
    let mut paths: Vec<(&str, Kernel)> = vec![
        ("memcpy", Box::new(|y, _, x| y.copy_from_slice(x))),
        ("xor", Box::new(|y, _, x| field::add(y, x))),
        ("scalar", Box::new(field::add_scaled_scalar)),
        ("safe", Box::new(field::add_scaled_safe)),
        ("dispatch", Box::new(field::add_scaled)),
    ];
    #[cfg(feature = "simd")]
    for simd in field::simd::Simd::available() {
        paths.push((simd.name(), Box::new(move |y, c, x| simd.add_scaled(y, c, x))));
    }
    paths
}

fn add_scaled(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("add_scaled");
    for len in [64, 1024, 4096, 65536] {
        group.throughput(Throughput::Bytes(len as u64));
        let x: Vec<u8> = (0..len).map(|i| field::hash_coefficient(1, i as u64)).collect();
        for (name, path) in paths() {
            let mut y = vec![0; len];
            group.bench_function(BenchmarkId::new(name, len), |bencher| {
                bencher.iter(|| path(black_box(&mut y), black_box(0xA7), black_box(&x)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, add_scaled);
criterion_main!(benches);
