//! Windows: most of what the dead wrote is decoded, the newest may be lost, and nothing is ever invented.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use tagalong::log::{Body, ClientId, Digest, Entry, Header, Lsn, Origin, Request, Time};
use tagalong::share::body::{Plain, SPAN_MAX, decode_symbol, encode_symbol};
use tagalong::share::cover::Domain;
use tagalong::share::decode::Decoder;
use tagalong::share::window::{SHARES_MAX, Window};

use crate::world::EPOCH;

struct Run {
    log: Vec<Entry>,
    /// Of each client, with their numbers.
    held: BTreeMap<u64, Vec<(u64, Lsn, Bytes)>>,
    shares: u64,
    share_bytes: u64,
}

/// What came of the entries of the dead that were not stable.
#[derive(Debug, Default)]
struct Outcome {
    dead: usize,
    recovered: usize,
    /// Of those that were lost, how many are among the newest of the dead.
    tail: usize,
    /// Entries from the first lost one to the end of the log: what a recovery that stops there cuts off.
    open: u64,
}

fn domain(client: u64) -> Domain {
    Domain::of(ClientId(client.into()), "")
}

/// Clients `0..clients` write in an order that is drawn; each response brings its author what the window has earned.
fn run(clients: u64, writes: u64, percent: u32, mut length: impl FnMut(u64) -> u32, seed: u64, lag: u64) -> Run {
    let mut dice = ChaCha8Rng::seed_from_u64(seed);
    let mut window = Window::new(percent);
    let mut run = Run { log: Vec::new(), held: BTreeMap::new(), shares: 0, share_bytes: 0 };
    for n in 1..=writes {
        let client = dice.next_u64() % clients;
        let mut payload = vec![0; length(dice.next_u64()) as usize];
        dice.fill_bytes(&mut payload);
        let header = Header {
            epoch: EPOCH,
            lsn: Lsn(n),
            body: Body::Command,
            origin: Some(Origin { client: ClientId(client.into()), request: Request(n) }),
            time: Time(n * 50),
            answered: Request(0),
            length: u32::try_from(payload.len()).unwrap(),
            digest: Digest::crc32(&payload),
        };
        let entry = Entry { header, payload: payload.into() };
        window.add(&entry, Some(domain(client)));
        run.log.push(entry);
        let stable = Lsn(n.saturating_sub(lag));
        window.stabilize(stable);
        for _ in 0..SHARES_MAX {
            let id = 1_000_000 + run.shares;
            let Some(combination) = window.combine(id, &domain(client)) else { break };
            let Plain::Window { members, .. } = Plain::decode(EPOCH, &combination.body).unwrap() else { panic!() };
            assert!(members[0] > stable, "a share of what is stable");
            run.shares += 1;
            run.share_bytes += combination.body.len() as u64;
            run.held.entry(client).or_default().push((id, combination.until, combination.body));
        }
    }
    run
}

impl Run {
    fn lose(&self, dead: &BTreeSet<u64>, stable: Lsn) -> Outcome {
        let author = |entry: &Entry| u64::try_from(entry.header.origin.unwrap().client.0).unwrap();
        let mut decoder = Decoder::new(u64::MAX);
        // The backup has what is stable, and the living have their own.
        let known = |entry: &&Entry| entry.header.lsn <= stable || !dead.contains(&author(entry));
        for entry in self.log.iter().filter(|entry| entry.header.lsn.0 + SPAN_MAX as u64 > stable.0).filter(known) {
            decoder.know(entry.header.lsn, encode_symbol(entry).into()).unwrap();
        }
        for (id, until, body) in
            self.held.iter().filter(|(holder, _)| !dead.contains(holder)).flat_map(|(_, held)| held)
        {
            if *until <= stable {
                continue;
            }
            let plain = Plain::decode(EPOCH, body).unwrap();
            let Plain::Window { members, symbol } = &plain else { panic!("a stripe in a window's place") };
            assert_eq!(members.last(), Some(until));
            let terms = members.iter().enumerate().map(|(at, lsn)| (*lsn, plain.coefficient(*id, at)));
            decoder.insert(&terms.collect::<Vec<_>>(), symbol).unwrap();
        }
        assert_eq!(decoder.contradictions(), 0);
        let mut solved = BTreeSet::new();
        for (lsn, symbol) in decoder.take_solved() {
            let entry = decode_symbol(&symbol).expect("a solved symbol is an entry");
            assert_eq!(entry, self.log[usize::try_from(lsn.0 - 1).unwrap()], "nothing is invented");
            solved.insert(lsn);
        }
        let lost = self.log.iter().filter(|entry| entry.header.lsn > stable && dead.contains(&author(entry)));
        let lost: Vec<Lsn> = lost.map(|entry| entry.header.lsn).collect();
        Outcome {
            dead: lost.len(),
            recovered: lost.iter().filter(|lsn| solved.contains(lsn)).count(),
            tail: lost.iter().rev().take_while(|lsn| !solved.contains(lsn)).count(),
            open: lost.iter().find(|lsn| !solved.contains(lsn)).map_or(0, |lsn| self.log.len() as u64 + 1 - lsn.0),
        }
    }
}

fn sum(outcomes: impl Iterator<Item = Outcome>) -> (Outcome, usize, usize) {
    let (mut all, mut runs, mut whole) = (Outcome::default(), 0, 0);
    for Outcome { dead, recovered, tail, .. } in outcomes {
        all.dead += dead;
        all.recovered += recovered;
        all.tail += tail;
        runs += 1;
        whole += usize::from(dead == recovered);
    }
    (all, runs, whole)
}

fn show(name: &str, shares: f64, bytes: f64, (all, runs, whole): &(Outcome, usize, usize)) -> f64 {
    let recovered = all.recovered as f64 / all.dead as f64;
    println!(
        "{name}: {shares:.2} shares and {bytes:.2} bytes of them for each write; of the dead client's entries \
         {:.2} % are decoded, {whole} times of {runs} all; lost {:.2} a time, of these {:.2} its newest",
        100.0 * recovered,
        (all.dead - all.recovered) as f64 / *runs as f64,
        all.tail as f64 / *runs as f64,
    );
    recovered
}

/// Eight equal clients, one of which dies, at any moment.
fn eight(name: &str, percent: u32, length: impl Fn(u64) -> u32 + Copy) -> f64 {
    let runs: Vec<Run> = (0..4).map(|seed| run(8, 900, percent, length, seed, 400)).collect();
    let outcomes = runs.iter().flat_map(|run| (0..8).map(|dead| run.lose(&BTreeSet::from([dead]), Lsn(500))));
    let writes: u64 = runs.iter().map(|run| run.log.len() as u64).sum();
    let written: u64 = runs.iter().flat_map(|run| &run.log).map(|entry| entry.payload.len() as u64).sum();
    let shares: u64 = runs.iter().map(|run| run.shares).sum();
    let bytes: u64 = runs.iter().map(|run| run.share_bytes).sum();
    show(name, shares as f64 / writes as f64, bytes as f64 / written as f64, &sum(outcomes))
}

#[test]
fn most_of_what_a_dead_client_wrote_is_decoded() {
    let same = eight("8 clients, 300 B", 100, |_| 300);
    let mixed = eight("8 clients, 16 B to 4 KiB", 100, |dice| 16 << (dice % 9));
    let tight = eight("8 clients, 300 B, half the bytes", 50, |_| 300);
    assert!(same > 0.95 && mixed > 0.8 && tight > 0.5, "{same} {mixed} {tight}");
}

/// With more dead than the rate is chosen for, less is decoded, and still nothing but what was written.
#[test]
fn whoever_dies_nothing_is_invented() {
    for dead in 1..8 {
        let run = run(8, 600, 100, |dice| u32::try_from(dice % 500).unwrap(), dead, 300);
        let outcome = run.lose(&(0..dead).collect(), Lsn(300));
        println!("{dead} of 8 dead: {outcome:?}");
        assert!(outcome.dead > 0 && outcome.recovered <= outcome.dead);
    }
}

#[test]
fn shares_stay_within_the_bytes_that_are_granted() {
    for percent in [10, 50, 100, 400] {
        let run = run(3, 400, percent, |dice| u32::try_from(dice % 2_000).unwrap(), 5, 100);
        let written: usize = run.log.iter().map(|entry| encode_symbol(entry).len()).sum();
        let symbols = run.held.values().flatten().map(|(_, _, body)| match Plain::decode(EPOCH, body).unwrap() {
            Plain::Window { symbol, .. } => symbol.len(),
            Plain::Stripe { .. } | Plain::Witness { .. } => panic!("a stripe in a window's place"),
        });
        let symbols: usize = symbols.sum();
        assert!(symbols * 100 <= written * percent as usize, "{symbols} bytes for {written}, at {percent} %");
    }
}

/// What goes to a client never combines what it wrote itself.
#[test]
fn a_share_combines_what_others_wrote() {
    let run = run(5, 700, 100, |dice| u32::try_from(dice % 300).unwrap(), 9, 50);
    for (holder, (_, until, body)) in run.held.iter().flat_map(|(holder, held)| held.iter().map(move |it| (holder, it)))
    {
        let Plain::Window { members, .. } = Plain::decode(EPOCH, body).unwrap() else { panic!("a stripe") };
        for lsn in members {
            let entry = &run.log[usize::try_from(lsn.0 - 1).unwrap()];
            assert_ne!(entry.header.origin.unwrap().client, ClientId((*holder).into()));
            assert!(lsn <= *until && until.0 - lsn.0 < SPAN_MAX as u64);
        }
    }
}

/// Where a recovery stops at the first entry that it cannot have, it loses that and all above: with the default budget
/// that is the newest few, whatever the mix of sizes.
#[test]
fn what_a_dead_client_leaves_open_is_at_the_end() {
    let length = |dice: u64| match dice % 100 {
        0..7 => 16_384,
        7..35 => 4096,
        _ => 24,
    };
    for (clients, most, rarely) in [(8, 12, 2), (4, 16, 8), (2, 64, 32)] {
        let mut open = Vec::new();
        for seed in 0..12 {
            let run = run(clients, 700 + seed, 200, length, seed, 300);
            open.extend((0..clients).map(|dead| run.lose(&BTreeSet::from([dead]), Lsn(400 + seed)).open));
        }
        open.sort_unstable();
        let at = |percent: usize| open[(open.len() - 1) * percent / 100];
        println!(
            "{clients} clients: cut off in half of the cases {}, in 95 of 100 {}, at most {}",
            at(50),
            at(95),
            at(100)
        );
        assert!(at(100) <= most && at(95) <= rarely);
    }
}
