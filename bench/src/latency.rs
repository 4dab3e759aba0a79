//! What was measured of writes: how many, and how long they took.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// What is kept of a distribution.
const QUANTILES: [f64; 10] = [0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0];

/// Latencies, in microseconds, to three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new(3).expect("three digits are possible"))
    }
}

impl Latencies {
    pub(crate) fn note(&mut self, latency: Duration) {
        // It grows by itself, and takes whatever there is.
        let _ = self.0.record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn add(&mut self, other: &Latencies) {
        // Both grow by themselves.
        let _ = self.0.add(&other.0);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// As a child tells its parent.
    pub(crate) fn json(&self, seconds: f64) -> Value {
        let micros = |quantile| {
            #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a latency")]
            let nanos = self.0.value_at_quantile(quantile) as f64;
            nanos / 1000.0
        };
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = self.count() as f64 / seconds;
        json!({
            "writes": self.count(),
            "seconds": seconds,
            "writes_per_s": rate,
            "p50_us": micros(0.5),
            "p90_us": micros(0.9),
            "p99_us": micros(0.99),
            "max_us": micros(1.0),
            "quantiles_us": QUANTILES.map(|quantile| (quantile, micros(quantile))),
        })
    }
}
