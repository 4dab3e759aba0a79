//! What coverage costs the sequencer for each write: it goes into a stripe, every eighth seals one, and all that is pushed
//! is confirmed and, 64 writes later, stable.

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tagalong::log::{Body, ClientId, Digest, Epoch, Header, Lsn, NodeId, Origin, Request, Time};
use tagalong::share::cover::{Cover, CoverSettings};

const OWNERS: u64 = 16;

struct Stream {
    cover: Cover,
    header: Header,
    payload: Bytes,
}

impl Stream {
    fn new(f: u8, length: u32) -> Self {
        let settings = CoverSettings { f, members: 8, wait_us: 1_000, custody_bytes_max: 0, patience_us: 1_000_000 };
        let epoch = Epoch { generation: 0, number: 1, node: NodeId(1) };
        let mut cover = Cover::new(settings, epoch, "here", Lsn(0), Lsn(1), Time(0));
        for client in 0..OWNERS {
            cover.join((ClientId(client.into()), 1), "", 1 << 40, Request(0), Lsn(0));
        }
        let payload = Bytes::from(vec![0xA7; length as usize]);
        let header = Header {
            epoch,
            lsn: Lsn(0),
            body: Body::Command,
            origin: None,
            time: Time(0),
            answered: Request(0),
            length,
            digest: Digest::crc32(&payload),
        };
        Self { cover, header, payload }
    }

    fn write(&mut self) {
        let lsn = self.header.lsn.next();
        let client = ClientId((lsn.0 % OWNERS).into());
        self.header.lsn = lsn;
        self.header.origin = Some(Origin { client, request: Request(lsn.0 / OWNERS + 1) });
        self.cover.add(Time(0), &self.header, &self.payload);
        self.cover.tagged(client, lsn);
        self.cover.settle(Time(0), true, Vec::new());
        for (holder, share) in self.cover.take_pushes() {
            self.cover.confirmed(holder, share.id);
        }
        if lsn.0.is_multiple_of(16) {
            self.cover.stabilize(Lsn(lsn.0.saturating_sub(64)));
        }
    }
}

fn write(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cover");
    for f in [1, 2] {
        for length in [100, 4 << 10, 64 << 10] {
            group.throughput(Throughput::Bytes(length.into()));
            let mut stream = Stream::new(f, length);
            group.bench_function(BenchmarkId::new(format!("f={f}"), length), |bencher| bencher.iter(|| stream.write()));
            assert!(stream.cover.covered().0 + 128 > stream.header.lsn.0, "writes are covered");
        }
    }
    group.finish();
}

criterion_group!(benches, write);
criterion_main!(benches);
