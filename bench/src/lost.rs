//! What a disaster costs: the primary is killed under load, and every acknowledged write is looked for at the backup.
//!
//! As in Fig. 6 of the SMFS paper the link loses packets in the half second before; and beyond it, the link is down for a
//! while before. Loss of packets is that of datagrams here, and meets the baseline alone: a stream over TCP sends again what
//! is lost, and arrives later.

use std::time::Duration;

use crate::Result;
use crate::datagrams::Loss;
use crate::load::Shape;
use crate::node::Mode;
use crate::service::{Cell, Service, System};
use crate::table::{self, Spread};

/// Before the disaster.
const LOSSY: Duration = Duration::from_millis(500);
/// Datagrams that are lost in a row, on average.
const BURST: f64 = 4.0;

/// What is compared.
#[derive(clap::Args, Debug)]
pub(crate) struct LostArgs {
    #[arg(long, default_value_t = 8)]
    clients: u64,
    #[arg(long, default_value_t = 8)]
    in_flight: usize,
    #[arg(long, default_value_t = 4096)]
    payload: usize,
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    #[arg(long, value_delimiter = ',', default_value = "async,sync,tagged,covered")]
    mode: Vec<Mode>,
    /// Round trip to the backup.
    #[arg(long, default_value_t = 50)]
    rtt_ms: u64,
    /// Percent of the packets that are lost in the last half second.
    #[arg(long, value_delimiter = ',', default_value = "0,0.1,0.5,1")]
    loss: Vec<f64>,
    /// For how long the link is down before the primary is lost, in milliseconds.
    #[arg(long, value_delimiter = ',', default_value = "0,1000")]
    down_ms: Vec<u64>,
}

/// What happens before the primary is lost.
#[derive(Clone, Copy, Debug)]
enum Before {
    Loss(f64),
    Down(Duration),
}

pub(crate) async fn run(args: LostArgs) -> Result<()> {
    let systems: Vec<System> =
        [System::Smfs].into_iter().chain(args.mode.iter().copied().map(System::Service)).collect();
    let loss = args.loss.iter().copied().map(Before::Loss);
    let down = args.down_ms.iter().map(|down| Before::Down(Duration::from_millis(*down)));
    let cases: Vec<Before> = loss.chain(down).collect();
    let mut rows = Vec::new();
    for before in cases {
        let mut lost = vec![Vec::new(); systems.len()];
        for _ in 0..args.repeats {
            for (system, lost) in systems.iter().zip(&mut lost) {
                lost.push(disaster(*system, before, &args).await?);
            }
        }
        for (system, lost) in systems.iter().zip(lost) {
            #[expect(clippy::cast_precision_loss, reason = "figures for people")]
            let of = |which: fn(&(u64, u64)) -> u64| Spread::of(lost.iter().map(|lost| which(lost) as f64)).show(0);
            let what = match before {
                Before::Loss(percent) => format!("{percent} % of packets lost"),
                Before::Down(down) => format!("link down for {} ms", down.as_millis()),
            };
            rows.push(vec![what, system.name().to_owned(), of(|lost| lost.1), of(|lost| lost.0)]);
        }
    }
    table::print(&["before", "system", "acknowledged", "lost"], &rows);
    Ok(())
}

/// One disaster: how many acknowledged writes are lost, of how many.
async fn disaster(system: System, before: Before, args: &LostArgs) -> Result<(u64, u64)> {
    let LostArgs { clients, in_flight, payload, .. } = *args;
    let shape = Shape { clients, in_flight, payload, warm_up: 1.0, seconds: 600.0 };
    let cell = Cell { system, shape, rtt: Duration::from_millis(args.rtt_ms) };
    let folder = tempfile::tempdir_in(crate::scratch())?;
    let mut service = Service::start(&cell, folder.path()).await?;
    service.begin().await?;
    match before {
        Before::Loss(percent) => {
            service.lose(Loss { rate: percent / 100.0, burst: BURST });
            tokio::time::sleep(LOSSY).await;
        }
        Before::Down(down) => {
            service.cut();
            tokio::time::sleep(down).await;
        }
    }
    service.lose_primary().await
}
