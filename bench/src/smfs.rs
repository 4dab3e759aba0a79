//! The baseline of network-sync: SMFS's way to mirror a log, as its paper (FAST '09) has it, on this crate's log.
//!
//! Entries leave the primary as datagrams through an egress gateway, which adds repair packets; once those are on the link
//! the gateway calls back, and that is the acknowledgement. The far gateway repairs what was lost where it can. The backup
//! asks again for what could not be repaired, and appends and applies in log order.
//!
//! Kind to it, where there was a choice: the gateways are threads of the two processes and not machines of their own, the
//! repair code is MDS (any three lost of eleven are repaired) where the paper's is XOR in layers, small entries share a packet,
//! and its clients speak a plain stream without sessions, order, or a cache.

pub(crate) mod backup;
pub(crate) mod primary;
pub(crate) mod repair;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BufMut};
use serde_json::json;

use crate::disk::Disk;
use crate::process::{orders, tell};
use crate::{Result, node, tell_address};

/// Bytes of a datagram: what an Ethernet frame carries, less some for tunnels.
pub(crate) const PACKET_BYTES: usize = 1400;
/// Bytes of a fragment's head.
const FRAGMENT_HEAD: usize = 8 + 4 + 4 + 2;

/// A part of an entry, as it lies in a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fragment<'a> {
    pub(crate) lsn: u64,
    /// Bytes of the entry, and where these are in it.
    pub(crate) length: u32,
    pub(crate) offset: u32,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// The part of an entry from `offset` on that fits into so many bytes, if any does.
    pub(crate) fn cut(lsn: u64, entry: &'a [u8], offset: usize, room: usize) -> Option<Fragment<'a>> {
        let room = room.checked_sub(FRAGMENT_HEAD).filter(|room| *room > 0 || entry.is_empty())?;
        let bytes = &entry[offset..entry.len().min(offset + room)];
        let number = |number: usize| u32::try_from(number).expect("an entry is below 4 GiB");
        Some(Fragment { lsn, length: number(entry.len()), offset: number(offset), bytes })
    }

    pub(crate) fn write(&self, packet: &mut Vec<u8>) {
        packet.put_u64(self.lsn);
        packet.put_u32(self.length);
        packet.put_u32(self.offset);
        packet.put_u16(u16::try_from(self.bytes.len()).expect("a packet is below 64 KiB"));
        packet.extend_from_slice(self.bytes);
    }

    /// The next one of a packet; `None` at its end, or where it is damaged.
    pub(crate) fn read(packet: &mut &'a [u8]) -> Option<Fragment<'a>> {
        let (lsn, length) = (packet.try_get_u64().ok()?, packet.try_get_u32().ok()?);
        let (offset, here) = (packet.try_get_u32().ok()?, packet.try_get_u16().ok()?);
        let (bytes, rest) = packet.split_at_checked(here.into())?;
        *packet = rest;
        Some(Fragment { lsn, length, offset, bytes })
    }
}

/// What the primary's process is told when it is started.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct PrimaryArgs {
    #[arg(long)]
    folder: PathBuf,
    /// The near end of the link to the backup.
    #[arg(long)]
    far: SocketAddr,
    #[command(flatten)]
    gateway: primary::GatewaySettings,
}

/// What the backup's process is told when it is started.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BackupArgs {
    #[arg(long)]
    folder: PathBuf,
    /// How far away the primary is.
    #[arg(long)]
    round_trip_us: u64,
}

/// Runs the primary until it is told to finish.
pub(crate) async fn run_primary(args: PrimaryArgs) -> Result<()> {
    let mut orders = orders()?;
    let disk = Disk::open(&args.folder)?;
    tokio::select! {
        served = primary::serve(args.gateway, args.far, disk, tell_address) => served,
        obeyed = node::obey(&mut orders) => obeyed,
    }
}

/// Runs the backup until it is told to finish. Asked for what is missing of the first so many writes of each client, with the
/// numbers behind a colon, it takes nothing more, and tells.
pub(crate) async fn run_backup(args: BackupArgs) -> Result<()> {
    let mut orders = orders()?;
    let disk = Disk::open(&args.folder)?;
    let mut backup = backup::Backup::start(disk, Duration::from_micros(args.round_trip_us))?;
    tell_address(backup.address);
    while let Some(order) = orders.recv().await {
        match order.split_once(':') {
            Some(("missing", counts)) => {
                let tally = backup.finish();
                let missing = |(client, upto): (u64, &str)| tally.missing(client, upto.parse().unwrap_or(0));
                let missing: u64 = (0..).zip(counts.split(',')).map(missing).sum();
                tell(&json!({ "event": "missing", "writes": missing, "entries": backup.applied() }));
            }
            _ if order == "finish" => break,
            _ => node::answer(&order)?,
        }
    }
    Ok(())
}
